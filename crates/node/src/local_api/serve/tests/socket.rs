//! The socket itself: its modes, what lies in its place, and limits on what comes in.

use std::os::unix::fs::MetadataExt as _;

use super::super::body::MAX_BODY;
use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("warren-socket-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

#[tokio::test]
async fn everybody_may_connect_and_nobody_may_replace_it() {
    let scratch = Scratch::new("modes");
    let path = scratch.0.join("run/node.sock");
    let _listener = listen(&path).unwrap();
    assert_eq!(mode(&path), 0o666);
    assert_eq!(mode(path.parent().unwrap()) & 0o022, 0, "others may write to the directory");
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
    let scratch = Scratch::new("stale");
    let path = scratch.0.join("node.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let living = listen(&path).unwrap();
    assert!(matches!(listen(&path), Err(ListenError::InUse(_))));
    drop(living);
    drop(listen(&path).unwrap());
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let scratch = Scratch::new("file");
    let path = scratch.0.join("node.sock");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(listen(&path), Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let link = scratch.0.join("link.sock");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(listen(&link), Err(ListenError::NotASocket(_))));
    assert!(matches!(listen(&path.join("below")), Err(ListenError::Io { .. })));
}

#[tokio::test]
async fn a_body_is_bounded_whether_its_length_is_announced_or_not() {
    let fixture = fixture("bodies", own_uid());
    let size = MAX_BODY + 1;
    let announced = format!("Content-Length: {size}\r\n\r\n{}", " ".repeat(size));
    let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n{}\r\n0\r\n\r\n", " ".repeat(size));
    for rest in [announced, chunked] {
        let request = format!("PATCH /localapi/v0/prefs HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{rest}");
        let mut stream = UnixStream::connect(&fixture.socket).await.unwrap();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn a_head_is_bounded() {
    let fixture = fixture("heads", own_uid());
    let long = format!("GET /localapi/v0/prefs HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD));
    let many = format!("GET /localapi/v0/prefs HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n", "X: y\r\n".repeat(MAX_HEADERS));
    for request in [long, many] {
        let mut stream = UnixStream::connect(&fixture.socket).await.unwrap();
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test(start_paused = true)]
async fn who_connects_and_says_nothing_is_let_go() {
    let fixture = fixture("silent", own_uid());
    for beginning in ["", "GET /localapi/v0/pre"] {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(beginning.as_bytes()).await.unwrap();
        let shared = fixture.shared.clone();
        // Ends by itself; a connection that stayed would hang this test.
        connection(far, own_uid(), shared).await;
        let mut answer = Vec::new();
        let _ = near.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"));
    }
}
