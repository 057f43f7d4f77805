//! Streams that both ends know beforehand, so that each byte that arrives can be compared with what it must be.

use super::STALLED;
use anyhow::{Context, Result, anyhow, ensure};
use clap::Subcommand;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Instant;

/// Connections at once, so that the loss of one packet does not leave the tunnel idle.
const CONNECTIONS: u64 = 4;
/// Bytes that are made and compared at a time: whole words.
const CHUNK: usize = 64 * 1024;

/// The ends of a comparison.
#[derive(Subcommand)]
pub(crate) enum Whole {
    /// Answers one `whole`.
    WholeAnswer {
        /// `address:port` to listen on.
        listen: String,
    },
    /// Sends and receives pseudo-random bytes at once, and compares what comes with what must come.
    Whole {
        /// `address:port` of the other end.
        to: String,
        /// How many bytes each way.
        bytes: u64,
        /// Another number is other bytes.
        seed: u64,
    },
}

/// Runs one of them.
pub(super) fn run(whole: &Whole) -> Result<()> {
    match whole {
        Whole::WholeAnswer { listen } => answer(listen),
        Whole::Whole { to, bytes, seed } => ask(to, *bytes, *seed),
    }
}

fn answer(listen: &str) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {listen}");
    let all = (0..CONNECTIONS).map(|_| {
        let (mut stream, _) = listener.accept()?;
        Ok(std::thread::spawn(move || {
            let mut head = [[0; 8]; 2];
            stream.set_read_timeout(Some(STALLED))?;
            stream.read_exact(head.as_flattened_mut()).context("no word on what is to come")?;
            let [seed, bytes] = head.map(u64::from_le_bytes);
            exchange(stream, [seed ^ 1, seed], bytes)
        }))
    });
    let all: Vec<_> = all.collect::<Result<_>>()?;
    for one in all {
        one.join().map_err(|_| anyhow!("a thread panicked"))??;
    }
    println!("whole");
    Ok(())
}

fn ask(to: &str, bytes: u64, seed: u64) -> Result<()> {
    let start = Instant::now();
    let all: Vec<_> = (0..CONNECTIONS)
        .map(|number| -> Result<_> {
            let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
            // Even, as the other direction has the odd one above.
            let (seed, bytes) = ((seed * CONNECTIONS + number) * 2, bytes / CONNECTIONS);
            stream.write_all([seed, bytes].map(u64::to_le_bytes).as_flattened())?;
            Ok(std::thread::spawn(move || exchange(stream, [seed, seed ^ 1], bytes)))
        })
        .collect::<Result<_>>()?;
    for one in all {
        one.join().map_err(|_| anyhow!("a thread panicked"))??;
    }
    println!("whole after {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Sends `bytes` bytes of one seed while as many of another come, to the end of the stream.
fn exchange(stream: TcpStream, [ours, theirs]: [u64; 2], bytes: u64) -> Result<()> {
    stream.set_read_timeout(Some(STALLED))?;
    stream.set_write_timeout(Some(STALLED))?;
    let mut sender = stream.try_clone()?;
    let sending = std::thread::spawn(move || -> Result<()> {
        let (mut source, mut chunk, mut left) = (Source::new(ours), vec![0; CHUNK], bytes);
        while left > 0 {
            source.fill(&mut chunk);
            let length = CHUNK.min(usize::try_from(left)?);
            sender.write_all(&chunk[..length]).with_context(|| format!("cannot send with {left} bytes left"))?;
            left -= length as u64;
        }
        Ok(sender.shutdown(Shutdown::Write)?)
    });
    compare(&stream, theirs, bytes)?;
    sending.join().map_err(|_| anyhow!("the sending thread panicked"))?
}

/// Reads a stream to its end, which must be `bytes` bytes of this seed.
fn compare(mut stream: impl Read, seed: u64, bytes: u64) -> Result<()> {
    let (mut source, mut wanted, mut chunk) = (Source::new(seed), vec![0; CHUNK], vec![0; CHUNK]);
    let mut done = 0;
    while done < bytes {
        source.fill(&mut wanted);
        let length = CHUNK.min(usize::try_from(bytes - done)?);
        let what = || format!("the stream broke off between bytes {done} and {} of {bytes}", done + length as u64);
        stream.read_exact(&mut chunk[..length]).with_context(what)?;
        if chunk[..length] != wanted[..length] {
            let at = chunk.iter().zip(&wanted).position(|(came, wanted)| came != wanted).unwrap_or_default();
            let (came, must) = (&chunk[at..length.min(at + 8)], &wanted[at..length.min(at + 8)]);
            anyhow::bail!("byte {} of {bytes} is wrong: {came:02x?} came, {must:02x?} were sent", done + at as u64);
        }
        done += length as u64;
    }
    ensure!(stream.read(&mut chunk)? == 0, "more than the {bytes} bytes came");
    Ok(())
}

/// Pseudo-random bytes: xorshift64.
struct Source(u64);

impl Source {
    fn new(seed: u64) -> Self {
        // Spread, as neighbours would begin alike, and never zero, which stays zero.
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Fills whole words of eight bytes.
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length.next_multiple_of(CHUNK)];
        Source::new(seed).fill(&mut bytes);
        bytes.truncate(length);
        bytes
    }

    #[test]
    fn what_was_sent_is_whole() {
        for length in [0, 1, 8, CHUNK, CHUNK + 3, 3 * CHUNK] {
            compare(&made(7, length)[..], 7, length as u64).unwrap();
        }
    }

    #[test]
    fn one_wrong_byte_is_found_and_told() {
        for at in [0, 5, CHUNK - 1, CHUNK, 2 * CHUNK + 4] {
            let mut bytes = made(7, 2 * CHUNK + 5);
            bytes[at] ^= 0x10;
            let said = compare(&bytes[..], 7, bytes.len() as u64).unwrap_err().to_string();
            assert!(said.starts_with(&format!("byte {at} of ")), "{said}");
        }
    }

    #[test]
    fn missing_further_exchanged_and_foreign_bytes_are_found() {
        let bytes = made(7, CHUNK + 16);
        assert!(compare(&bytes[..CHUNK + 15], 7, CHUNK as u64 + 16).is_err());
        assert!(compare(&bytes[..], 7, CHUNK as u64 + 15).is_err());
        assert!(compare(&bytes[..], 8, CHUNK as u64 + 16).is_err());
        let exchanged = [&bytes[8..16], &bytes[..8], &bytes[16..]].concat();
        assert!(compare(&exchanged[..], 7, CHUNK as u64 + 16).is_err());
    }

    #[test]
    fn every_stream_of_a_run_is_another() {
        let starts: std::collections::BTreeSet<Vec<u8>> = (0..1000).map(|seed| made(seed, 8)).collect();
        assert_eq!(starts.len(), 1000);
    }
}
