//! A program with a node inside it, without TUN device and without root.
//!
//! `inside STATE-DIR SERVER SERVER-KEY AUTH-KEY PEER PORT` joins as the node `inside`, fetches a page from a port of PEER, prints
//! it, and answers every HTTP request on port 80 of its own addresses with a page.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::io::{Error, Result};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use warren_node::userspace::{Dialed, Inside, Membership};

/// Most bytes of a request that are read.
const REQUEST_MAX: usize = 16 * 1024;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [state_dir, server, server_key, auth_key, peer, port] = words.as_slice() else {
        return Err(Error::other("STATE-DIR SERVER SERVER-KEY AUTH-KEY PEER PORT"));
    };
    let node = Inside::start(Membership {
        state_dir: state_dir.into(),
        server: server.clone(),
        server_key: server_key.clone(),
        auth_key: auth_key.clone(),
        hostname: "inside".to_owned(),
    })
    .await?;
    println!("joined as {:?}", node.network().addresses());

    let port = port.parse().map_err(Error::other)?;
    if let Dialed::Tailnet(mut stream) = node.dialer().dial(peer, port).await.map_err(Error::other)? {
        stream.write_all(format!("GET / HTTP/1.0\r\nHost: {peer}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        println!("{peer} says: {}", answer.lines().next_back().unwrap_or_default());
    }

    let mut listener = node.network().listen(80)?;
    println!("listening");
    while let Some(mut stream) = listener.accept().await {
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && request.len() < REQUEST_MAX {
                if stream.read_buf(&mut request).await? == 0 {
                    break;
                }
            }
            let page = "page from inside";
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", page.len());
            stream.write_all((head + page).as_bytes()).await?;
            stream.shutdown().await
        });
    }
    node.shutdown().await;
    Ok(())
}
