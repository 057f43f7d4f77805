use tokio::net::TcpListener;

use super::*;

#[test]
fn families_take_turns_and_the_number_is_bounded() {
    let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
    let found = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1"]);
    assert_eq!(alternate(found), parse(&["[::1]:1", "127.0.0.1:1", "[::2]:1", "[::3]:1"]));
    assert_eq!(alternate([]), []);
    let many = (1..=100).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    assert_eq!(alternate(many).len(), MAX_ADDRESSES);
}

#[tokio::test]
async fn a_dead_address_does_not_hide_a_living_one() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let living = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = living.local_addr().unwrap();
    assert_eq!(race(vec![dead, address]).await.unwrap().peer_addr().unwrap(), address);
    assert_eq!(race(vec![dead]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

fn environment(variables: &'static [(&str, &str)]) -> Proxies {
    Proxies::new(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
}

#[test]
fn each_protocol_has_its_proxy() {
    let proxies = environment(&[("HTTPS_PROXY", "http://one:3128/"), ("http_proxy", "two")]);
    let of = |is_tls| proxies.of("warren.example", is_tls).unwrap().clone().unwrap();
    assert_eq!(of(true), Proxy { host: "one".into(), port: 3128, authorization: None });
    assert_eq!(of(false), Proxy { host: "two".into(), port: 80, authorization: None });
    assert!(environment(&[("HTTPS_PROXY", "")]).of("warren.example", true).is_none());
    assert!(environment(&[("HTTPS_PROXY", "http://one")]).of("warren.example", false).is_none());
}

#[test]
fn exceptions_are_names_domains_addresses_and_networks() {
    let proxies =
        environment(&[("HTTPS_PROXY", "one"), ("NO_PROXY", "corp.example, .lan,10.0.0.0/8,fd00::/8,192.0.2.1")]);
    for host in ["corp.example", "a.CORP.example", "nas.lan", "10.1.2.3", "fd12::1", "192.0.2.1", "localhost", "::1"] {
        assert!(proxies.of(host, true).is_none(), "{host}");
    }
    for host in ["notcorp.example", "corp.example.org", "11.0.0.1", "fe80::1", "192.0.2.2"] {
        assert!(proxies.of(host, true).is_some(), "{host}");
    }
    for all in [&[("HTTPS_PROXY", "one"), ("NO_PROXY", "*")], &[("HTTPS_PROXY", "one"), ("NO_PROXY", "0.0.0.0/0")]] {
        assert!(environment(all).of("203.0.113.1", true).is_none());
    }
}

/// RFC 7617, section 2, has the first; RFC 4648, section 10, the padding.
#[test]
fn users_and_passwords_are_passed_on_and_never_repeated() {
    let authorization = |text: &str| Proxy::parse(text).unwrap().authorization.unwrap();
    assert_eq!(authorization("http://Aladdin:open%20sesame@[fd00::1]:8080"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
        assert_eq!(base64(plain.as_bytes()), coded);
    }
    for bad in ["https://one", "socks5://one", "http://u:secret@", "http://u:secret@a b", "http://u:secret%4@a", "a:0"]
    {
        assert_eq!(Proxy::parse(bad), None, "{bad}");
    }
    let proxies = environment(&[("HTTPS_PROXY", "http://u:secret@a b")]);
    let said = proxies.of("x", true).unwrap().clone().unwrap_err();
    assert!(said.contains("HTTPS_PROXY") && !said.contains("secret"), "{said}");
}

/// Lets a proxy answer with `answer`, and returns what the connection is and what the proxy was asked.
async fn ask(answer: &'static str) -> (io::Result<TcpStream>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port(), authorization: None };
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(asked).unwrap()
    };
    tokio::join!(proxy.connect("2001:db8::1", 443), serve)
}

#[tokio::test]
async fn a_connection_begins_right_behind_the_proxys_answer() {
    let (stream, asked) = ask("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nfirst").await;
    assert_eq!(asked, "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n");
    let mut rest = [0; 5];
    stream.unwrap().read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"first");
}

#[tokio::test]
async fn refusals_and_nonsense_are_named() {
    for (answer, said) in [
        ("HTTP/1.1 403 Filtered\r\n\r\n", "it answered 403"),
        ("HTTP/1.1 407 Who\r\n\r\n", "another user"),
        ("SSH-2.0-x\r\n\r\n", "not HTTP"),
        ("HTTP/1.1 200 OK\r\n", "end of file"),
    ] {
        let (stream, _) = ask(answer).await;
        let error = stream.unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("127.0.0.1"), "{error}");
    }
    let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(20_000)).leak();
    assert!(ask(long).await.0.unwrap_err().to_string().contains("too long"));
}
