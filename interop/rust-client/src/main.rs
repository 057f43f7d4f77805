//! The official Rust client as a test peer.
//!
//! `rust-client SERVER-URL AUTH-KEY STEP…` joins and then takes each step, printing a line for it: `echo:ADDRESS:PORT`
//! sends datagrams and a stream there and expects them back; `page:ADDRESS:PORT=TEXT` fetches a page and expects TEXT.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(80);

#[tokio::main]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let mut next = |what: &str| words.next().ok_or(format!("missing: {what}"));
    let url = next("server URL")?;
    let key = next("auth key")?;
    let steps: Vec<String> = words.collect();

    let mut config = tailscale::Config::default_with_key_file("rust-client-keys.json").await?;
    config.control_server_url = url.parse()?;
    config.requested_hostname = Some("crab".to_owned());
    let device = tailscale::Device::new(&config, Some(key)).await?;
    println!("joined as {}", device.ipv4_addr().await?);

    let deadline = Instant::now() + LIMIT;
    for step in &steps {
        if let Some(echo) = step.strip_prefix("echo:") {
            let echo: SocketAddr = echo.parse()?;
            datagrams(&device, echo, deadline).await?;
            println!("datagrams came back from {echo}");
            retry(deadline, "stream", || stream(&device, echo)).await?;
            println!("stream came back from {echo}");
        } else {
            let page = step.strip_prefix("page:").and_then(|page| page.split_once('='));
            let (address, text) = page.ok_or("a step is echo:ADDRESS:PORT or page:ADDRESS:PORT=TEXT")?;
            let address: SocketAddr = address.parse()?;
            retry(deadline, "page", || fetch(&device, address, text)).await?;
            println!("page came from {address}");
        }
    }
    println!("all steps are done");
    device.shutdown(Some(Duration::from_secs(2))).await;
    Ok(())
}

/// Tries a step until it succeeds: paths take a moment to come up.
async fn retry<F: Future<Output = Result<()>>>(deadline: Instant, what: &str, step: impl Fn() -> F) -> Result<()> {
    loop {
        let error = match timeout(Duration::from_secs(5), step()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer within 5 s".to_owned(),
        };
        if Instant::now() > deadline {
            return Err(format!("{what}: {error}").into());
        }
        println!("{what}: {error}; once more");
        sleep(Duration::from_millis(300)).await;
    }
}

/// Sends datagrams of several sizes, each again and again until it comes back.
///
/// One socket and one receive at a time: the library's network stack fails when a socket goes away that still waits for
/// a datagram, and takes no port 0.
async fn datagrams(device: &tailscale::Device, to: SocketAddr, deadline: Instant) -> Result<()> {
    let socket = device.udp_bind((device.ipv4_addr().await?, 20_000).into()).await?;
    for size in [1, 100, 1000] {
        let sent = vec![b'u'; size];
        let mut back = Vec::new();
        while back != sent {
            let receive = socket.recv_from_bytes();
            tokio::pin!(receive);
            back = loop {
                socket.send_to(to, &sent).await?;
                match timeout(Duration::from_millis(300), &mut receive).await {
                    Ok(received) => break received?.1.to_vec(),
                    Err(_) if Instant::now() > deadline => return Err("no answer".into()),
                    Err(_) => {}
                }
            };
        }
    }
    Ok(())
}

async fn stream(device: &tailscale::Device, to: SocketAddr) -> Result<()> {
    let mut stream = device.tcp_connect(to).await?;
    let sent = vec![b't'; 10_000];
    stream.write_all(&sent).await?;
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).await?;
    if received != sent {
        return Err("other bytes came back".into());
    }
    Ok(())
}

async fn fetch(device: &tailscale::Device, from: SocketAddr, text: &str) -> Result<()> {
    let mut stream = device.tcp_connect(from).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", from.ip());
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&answer).ends_with(text) {
        match stream.read(&mut buffer).await? {
            0 => return Err(format!("the page is {:?}", String::from_utf8_lossy(&answer)).into()),
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(())
}
