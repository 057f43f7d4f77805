//! Bodies of local API messages, with their limits.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

/// Largest request body.
pub(super) const MAX_BODY: usize = 64 * 1024;

/// How long a caller may take to send a body.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Is what an answer carries: one piece, or lines as they come.
#[derive(Debug)]
pub(super) enum Answer {
    Whole(Full<Bytes>),
    Lines(mpsc::Receiver<Bytes>),
}

impl Answer {
    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        Self::Whole(Full::new(text.into()))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(full) => Pin::new(full).poll_frame(context),
            Self::Lines(lines) => lines.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(full) => full.is_end_stream(),
            Self::Lines(_) => false,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(full) => full.size_hint(),
            Self::Lines(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// Reads a request body, `None` if it is too long or too slow.
pub(super) async fn read<B>(body: B) -> Option<Bytes>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let limited = Limited::new(body, MAX_BODY);
    let collected = tokio::time::timeout(BODY_TIMEOUT, limited.collect()).await.ok()?.ok()?;
    Some(collected.to_bytes())
}

/// Returns the value of `name` in a query string, percent-decoded.
pub(super) fn query(query: Option<&str>, name: &str) -> Option<String> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| percent_decode(value)).flatten()
    })
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_decoded() {
        let text = Some("a=1&addr=%5Bfd7a%3A%3A1%5D%3A80&x=+y&bad=%f&bad2=%ff");
        assert_eq!(query(text, "addr").unwrap(), "[fd7a::1]:80");
        assert_eq!(query(text, "x").unwrap(), " y");
        assert_eq!(query(text, "bad"), None);
        assert_eq!(query(text, "bad2"), None);
        assert_eq!(query(text, "missing"), None);
        assert_eq!(query(None, "a"), None);
    }

    #[tokio::test]
    async fn a_long_body_is_refused() {
        assert!(read(Full::new(Bytes::from(vec![0; MAX_BODY]))).await.is_some());
        assert!(read(Full::new(Bytes::from(vec![0; MAX_BODY + 1]))).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_is_given_up() {
        let (_keep_open, lines) = mpsc::channel(1);
        assert!(read(Answer::Lines(lines)).await.is_none());
    }
}
