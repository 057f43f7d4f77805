//! `warren nc`: standard input and output over a connection to a peer.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;

use clap::Args;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use warren_node::local_api::Dialling;

use super::Socket;
use crate::exit::{Exit, Failure, OrExit};

/// Bytes that are read at a time.
const CHUNK: usize = 64 * 1024;
/// Chunks of standard input that may wait.
const WAITING: usize = 4;

/// Arguments of `warren nc`.
#[derive(Debug, Args)]
pub(crate) struct Nc {
    /// Name or address of the peer.
    #[arg(value_name = "HOST")]
    host: String,
    /// TCP port there.
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    #[command(flatten)]
    socket: Socket,
}

impl Nc {
    /// Connects and carries bytes until the other end is done.
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self.socket.client().dial(&self.host, self.port).await? {
            Dialling::Stream(stream) => carry(stream).await,
            Dialling::Address(address) => carry(connect(address).await?).await,
        }
        .or_exit(Exit::General, "the connection broke")
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    TcpStream::connect(address).await.or_exit(Exit::Unreachable, format!("{address} is not reached"))
}

async fn carry(stream: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut input = input();
    let up = async move {
        while let Some(chunk) = input.recv().await {
            write.write_all(&chunk).await?;
        }
        write.shutdown().await?;
        // What comes back decides the end.
        std::future::pending::<io::Result<()>>().await
    };
    let down = async move {
        let mut buffer = vec![0; CHUNK];
        let mut output = io::stdout();
        loop {
            let count = read.read(&mut buffer).await?;
            if count == 0 {
                return output.flush();
            }
            output.write_all(buffer.get(..count).unwrap_or_default())?;
            output.flush()?;
        }
    };
    tokio::select! {
        ended = down => ended,
        ended = up => ended,
    }
}

/// Reads standard input on a thread of its own, for nothing ends a read that waits for a person.
fn input() -> mpsc::Receiver<Vec<u8>> {
    let (chunks, receiver) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            let chunk = buffer.get(..count).unwrap_or_default().to_vec();
            if chunks.blocking_send(chunk).is_err() {
                return;
            }
        }
    });
    receiver
}
