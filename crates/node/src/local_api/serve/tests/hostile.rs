//! Whatever arrives on the socket is answered or cut off, and the next caller finds the daemon in good health.

use proptest::prelude::*;

use super::*;

/// Sends bytes, and returns everything that comes back until the server closes the connection.
async fn exchange(shared: &Shared, bytes: &[u8]) -> Vec<u8> {
    let (near, far) = UnixStream::pair().unwrap();
    let serving = tokio::spawn(connection(far, 0, shared.clone()));
    let (reader, mut writer) = near.into_split();
    let mut answer = Vec::new();
    tokio::join!(
        async {
            let _ = writer.write_all(bytes).await;
        },
        async {
            let _ = reader.take(1 << 20).read_to_end(&mut answer).await;
        }
    );
    serving.await.unwrap();
    answer
}

fn arb_request() -> impl Strategy<Value = Vec<u8>> {
    let path = prop_oneof![
        Just("status"),
        Just("prefs"),
        Just("start"),
        Just("whois?addr=%5B::1%5D:80"),
        Just("whois?addr=%"),
        Just("ping?ip=1.2.3.4"),
        Just("logout"),
        Just(""),
    ];
    let method = prop_oneof![Just("GET"), Just("POST"), Just("PATCH"), Just("G\u{e9}T")];
    let body = proptest::collection::vec(any::<u8>(), 0..600);
    let shaped = (method, path, body, 0_usize..800).prop_map(|(method, path, body, length)| {
        let head = format!("{method} /localapi/v0/{path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n");
        [head.into_bytes(), body].concat()
    });
    prop_oneof![shaped, proptest::collection::vec(any::<u8>(), 0..4000)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_on_the_socket_harms_the_daemon(requests in proptest::collection::vec(arb_request(), 1..4)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let fixture = fixture("hostile", 0);
            for request in &requests {
                let answer = exchange(&fixture.shared, request).await;
                assert!(answer.len() < 1 << 20);
                assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 "), "{}", String::from_utf8_lossy(&answer));
            }
            let good = format!("GET /localapi/v0/prefs HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
            let answer = exchange(&fixture.shared, good.as_bytes()).await;
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        });
    }

    #[test]
    fn no_query_panics(text in ".{0,80}", name in "[a-z]{1,4}") {
        let found = body::query(Some(&text), &name);
        prop_assert!(found.is_none_or(|value| value.len() <= text.len()));
        let _ = parse_who(&text);
    }
}
