//! Attacks on a login, one each, and what an honest provider does.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::*;
use crate::clock::Clock;
use crate::testing::start_of_time;

const ISSUER: &str = "https://login.example.com";

fn config(text: &str) -> Result<OidcConfig, OidcConfigError> {
    OidcConfig::parse(text, Path::new("oidc.toml"), |_| Ok(Zeroizing::new("s3cret%\n".to_owned())))
}

fn provider(more: &str) -> Provider {
    let text = format!("[[provider]]\nname = \"example\"\nissuer = \"{ISSUER}\"\nclient_id = \"warren\"\n{more}");
    config(&text).unwrap().providers.remove(0)
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A provider's keys, one of each kind.
pub(crate) struct Signer {
    ed25519: Ed25519KeyPair,
    p256: EcdsaKeyPair,
    rsa: RsaKeyPair,
}

impl Signer {
    pub(crate) fn new() -> Self {
        let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let rsa = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        Self { ed25519: Ed25519KeyPair::generate().unwrap(), p256, rsa }
    }

    pub(crate) fn set(&self) -> Value {
        let point = self.p256.public_key().as_ref();
        // RSAPublicKey (RFC 8017, appendix A.1.1) of 2048 bits: two headers and a zero, the modulus, a header, 65537.
        let der = self.rsa.public_key().as_ref();
        let (n, e) = (&der[9..265], &der[267..]);
        json!({"keys": [
            {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": encode(self.ed25519.public_key())},
            {"kty": "EC", "crv": "P-256", "kid": "ec", "use": "sig", "x": encode(&point[1..33]), "y": encode(&point[33..])},
            {"kty": "RSA", "kid": "rsa", "alg": "RS256", "n": encode(n), "e": encode(e)},
            {"kty": "oct", "kid": "shared", "k": encode("0123456789abcdef0123456789abcdef")},
            {"kty": "RSA", "kid": "odd"}, 7,
        ]})
    }

    fn keys(&self) -> KeySet {
        KeySet::parse(self.set().to_string().as_bytes()).unwrap()
    }

    pub(crate) fn sign(&self, header: &Value, payload: &Value) -> String {
        let signed = format!("{}.{}", encode(header.to_string()), encode(payload.to_string()));
        let message = signed.as_bytes();
        let signature = match header["alg"].as_str().unwrap() {
            "ES256" => self.p256.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            "RS256" => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
            "none" => Vec::new(),
            _ => self.ed25519.sign(message).as_ref().to_vec(),
        };
        format!("{signed}.{}", encode(signature))
    }
}

fn payload() -> Value {
    let now = start_of_time().as_second();
    json!({"iss": ISSUER, "aud": "warren", "sub": "42", "nonce": "n", "iat": now, "exp": now + 300})
}

/// Checks a payload like [`payload`] with some claims changed; `null` takes one away.
fn check(changes: &Value) -> Result<Claims, ClaimsError> {
    let mut payload = payload();
    for (name, value) in changes.as_object().unwrap() {
        payload[name] = value.clone();
        if value.is_null() {
            payload.as_object_mut().unwrap().remove(name);
        }
    }
    let expected = Expected { issuer: ISSUER, client_id: "warren", nonce: "n", now: start_of_time() };
    Claims::check(payload.to_string().as_bytes(), &expected)
}

#[test]
fn honest_tokens_of_each_kind_are_believed() {
    let signer = Signer::new();
    let keys = signer.keys();
    for (alg, kid) in [("EdDSA", "ed"), ("Ed25519", "ed"), ("ES256", "ec"), ("RS256", "rsa")] {
        for header in [json!({"alg": alg, "kid": kid}), json!({"alg": alg, "typ": "JWT"})] {
            let payload = keys.verify(&signer.sign(&header, &payload()));
            assert_eq!(serde_json::from_slice::<Value>(&payload.unwrap()).unwrap()["sub"], "42", "{header}");
        }
    }
}

#[test]
fn a_token_without_a_real_signature_is_refused() {
    let signer = Signer::new();
    let keys = signer.keys();
    let verify = |header: Value| keys.verify(&signer.sign(&header, &payload()));
    for alg in ["none", "None", "HS256", "HS512", "RS1", "PS256", ""] {
        let error = verify(json!({"alg": alg})).unwrap_err();
        assert_eq!(error, JwsError::Algorithm { found: alg.to_owned() });
    }
    // Signed by the provider's key of one kind, said to be of another; a shared secret is no key at all.
    assert_eq!(verify(json!({"alg": "EdDSA", "kid": "rsa"})), Err(JwsError::UnknownKey));
    assert_eq!(verify(json!({"alg": "EdDSA", "kid": "shared"})), Err(JwsError::UnknownKey));
    assert_eq!(verify(json!({"alg": "EdDSA", "kid": "ed", "crit": ["b64"]})), Err(JwsError::Critical));
    let other = Signer::new();
    for (alg, kid) in [("EdDSA", "ed"), ("ES256", "ec"), ("RS256", "rsa")] {
        let foreign = other.sign(&json!({"alg": alg, "kid": kid}), &payload());
        assert_eq!(keys.verify(&foreign), Err(JwsError::Signature), "{alg}");
    }
    let good = signer.sign(&json!({"alg": "EdDSA"}), &payload());
    let (head, signature) = good.rsplit_once('.').unwrap();
    let forged = json!({"alg": "EdDSA"}).to_string();
    let other_payload = json!({"sub": "1"}).to_string();
    let forged = format!("{}.{}.{signature}", encode(forged), encode(other_payload));
    assert_eq!(keys.verify(&forged), Err(JwsError::Signature));
    for odd in ["", ".", "..", "a.b", head, &format!("{good}."), &format!("{good}=="), &"a".repeat(70_000)] {
        assert!(keys.verify(odd).is_err(), "{odd}");
    }
}

#[test]
fn a_token_that_names_no_key_needs_a_provider_with_one() {
    let (one, two) = (Signer::new(), Signer::new());
    let mut set = one.set();
    let more = two.set()["keys"][0].clone();
    set["keys"].as_array_mut().unwrap().push(more);
    let keys = KeySet::parse(set.to_string().as_bytes()).unwrap();
    assert_eq!(keys.verify(&one.sign(&json!({"alg": "EdDSA"}), &payload())), Err(JwsError::UnknownKey));
}

#[test]
fn a_key_for_another_purpose_verifies_nothing() {
    let signer = Signer::new();
    for (field, value) in [("use", "enc"), ("alg", "RS256")] {
        let mut key = signer.set()["keys"][0].clone();
        key[field] = value.into();
        let keys = KeySet::parse(json!({"keys": [key]}).to_string().as_bytes()).unwrap();
        assert_eq!(keys.verify(&signer.sign(&json!({"alg": "EdDSA"}), &payload())), Err(JwsError::UnknownKey));
    }
}

#[test]
fn claims_must_be_of_this_provider_for_this_client_and_this_login() {
    assert_eq!(check(&json!({})).unwrap().subject, "42");
    let other = "https://login.example.com/";
    assert_eq!(check(&json!({"iss": other})), Err(ClaimsError::Issuer { found: other.to_owned() }));
    assert_eq!(check(&json!({"iss": null})), Err(ClaimsError::Missing("iss")));
    for audience in [json!("other"), json!(["other"]), json!([]), json!(["warren", "other"]), json!([["warren"]])] {
        assert_eq!(check(&json!({"aud": audience})), Err(ClaimsError::Audience), "{audience}");
    }
    assert!(check(&json!({"aud": ["warren", "other"], "azp": "warren"})).is_ok());
    assert_eq!(check(&json!({"aud": ["warren", "other"], "azp": "other"})), Err(ClaimsError::Audience));
    assert_eq!(check(&json!({"azp": "other"})), Err(ClaimsError::Audience));
    assert_eq!(check(&json!({"aud": null})), Err(ClaimsError::Missing("aud")));
    assert_eq!(check(&json!({"nonce": "m"})), Err(ClaimsError::Nonce));
    assert_eq!(check(&json!({"nonce": null})), Err(ClaimsError::Missing("nonce")));
    for subject in [json!(null), json!(""), json!(42), json!("a\u{0}"), json!("x".repeat(256))] {
        assert_eq!(check(&json!({"sub": subject})), Err(ClaimsError::Missing("sub")), "{subject}");
    }
}

#[test]
fn claims_must_be_of_now_give_or_take_two_minutes() {
    let now = start_of_time().as_second();
    assert!(check(&json!({"exp": now - 119})).is_ok());
    assert_eq!(check(&json!({"exp": now - 120})), Err(ClaimsError::Expired));
    assert!(check(&json!({"iat": now + 120, "nbf": now + 120})).is_ok());
    assert_eq!(check(&json!({"iat": now + 121})), Err(ClaimsError::Future));
    assert_eq!(check(&json!({"nbf": now + 121})), Err(ClaimsError::Future));
    for (name, value) in [("exp", json!(null)), ("exp", json!("later")), ("exp", json!(1e300)), ("iat", json!(null))] {
        assert!(matches!(check(&json!({name: value})), Err(ClaimsError::Missing(_))), "{name} {value}");
    }
}

#[test]
fn only_a_verified_address_counts() {
    let email = |changes: Value| check(&changes).unwrap().verified_email();
    assert_eq!(email(json!({"email": "Ann@Example.com", "email_verified": true})).as_deref(), Some("ann@example.com"));
    assert_eq!(email(json!({"email": "a@b", "email_verified": "true"})).as_deref(), Some("a@b"));
    for verified in [json!(null), json!(false), json!("false"), json!(1), json!([true])] {
        assert_eq!(email(json!({"email": "a@b", "email_verified": verified})), None, "{verified}");
    }
}

#[test]
fn user_info_adds_to_the_token_and_never_overrules_it() {
    let add = |token: Value, info: Value| {
        let mut claims = check(&token).unwrap();
        merge_user_info(&mut claims, info.to_string().as_bytes()).map(|()| claims)
    };
    let claims = add(json!({}), json!({"sub": "42", "email": "a@b", "email_verified": true, "groups": ["x"]})).unwrap();
    assert_eq!(claims.verified_email().as_deref(), Some("a@b"));
    assert_eq!(claims.groups("groups").into_iter().collect::<Vec<_>>(), ["x"]);
    assert_eq!(add(json!({}), json!({"sub": "43"})), Err(ClaimsError::OtherSubject));
    assert_eq!(add(json!({}), json!({"email": "a@b"})), Err(ClaimsError::OtherSubject));
    // The word on one address is no word on another.
    let claims = add(json!({"email": "a@b"}), json!({"sub": "42", "email": "c@d", "email_verified": true})).unwrap();
    assert_eq!(claims.verified_email(), None);
}

fn now() -> Instant {
    Clock::system().instant()
}

#[test]
fn a_state_works_once_in_one_browser_for_one_provider_and_a_while() {
    let mut attempts = Attempts::default();
    let now = now();
    let begin = |attempts: &mut Attempts, salt: u8| {
        let mut random = [salt; RANDOM_BYTES];
        for (number, part) in random.chunks_mut(32).enumerate() {
            part[0] = u8::try_from(number).unwrap();
        }
        attempts.begin(now, &random, &format!("login{salt}"), "example").unwrap()
    };
    let begun = begin(&mut attempts, 1);
    assert_eq!(
        begun.challenge,
        encode(digest(&encode({
            let mut verifier = [1; 32];
            verifier[0] = 2;
            verifier
        })))
    );
    assert_eq!(attempts.login_of(&begun.state), Some("login1"));
    let taken = attempts.take(now, &begun.state, &begun.browser, "example").unwrap();
    assert_eq!((taken.login.as_str(), &taken.nonce), ("login1", &begun.nonce));
    let again = attempts.take(now, &begun.state, &begun.browser, "example");
    assert_eq!(again.err(), Some(AttemptError::Unknown), "replayed");
    // The states of two browsers, mixed up; each attempt is over afterwards.
    let (one, two) = (begin(&mut attempts, 2), begin(&mut attempts, 3));
    assert_eq!(attempts.take(now, &one.state, &two.browser, "example").err(), Some(AttemptError::OtherBrowser));
    assert_eq!(attempts.take(now, &one.state, &one.browser, "example").err(), Some(AttemptError::Unknown));
    assert_eq!(attempts.take(now, &two.state, "", "example").err(), Some(AttemptError::OtherBrowser), "stolen");
    // What comes from another provider than the browser was sent to.
    let begun = begin(&mut attempts, 4);
    assert_eq!(attempts.take(now, &begun.state, &begun.browser, "evil").err(), Some(AttemptError::OtherProvider));
    let begun = begin(&mut attempts, 5);
    let late = now + LIFETIME;
    assert_eq!(attempts.take(late, &begun.state, &begun.browser, "example").err(), Some(AttemptError::Expired));
    let begun = begin(&mut attempts, 6);
    let last = now + LIFETIME - Duration::from_secs(1);
    assert!(attempts.take(last, &begun.state, &begun.browser, "example").is_ok());
}

#[test]
fn a_login_has_few_attempts_at_a_time() {
    let mut attempts = Attempts::default();
    let now = now();
    let begun: Vec<_> = (0..20_u8)
        .map(|number| {
            let at = now + Duration::from_secs(u64::from(number));
            let begun = attempts.begin(at, &[number; RANDOM_BYTES], "login", "example").unwrap();
            (begun.state.clone(), begun)
        })
        .collect();
    let kept = begun.iter().filter(|(state, _)| attempts.login_of(state).is_some()).count();
    assert_eq!(kept, 8);
    assert!(attempts.login_of(&begun[19].0).is_some() && attempts.login_of(&begun[11].0).is_none(), "the oldest ended");
}

fn document(changes: &Value) -> Result<Discovery, DiscoveryError> {
    let mut document = json!({
        "issuer": ISSUER, "authorization_endpoint": "https://login.example.com/auth?tenant=1",
        "token_endpoint": "https://login.example.com/token", "jwks_uri": "https://keys.example.com/jwks",
    });
    for (name, value) in changes.as_object().unwrap() {
        document[name] = value.clone();
    }
    Discovery::parse(document.to_string().as_bytes(), &provider("client_secret_file = \"x\""))
}

#[test]
fn a_discovery_document_is_of_this_issuer_and_leads_nowhere_unsafe() {
    assert!(document(&json!({})).is_ok());
    for issuer in ["https://login.example.com/", "https://evil.example", "HTTPS://login.example.com"] {
        assert!(matches!(document(&json!({"issuer": issuer})), Err(DiscoveryError::Issuer { .. })), "{issuer}");
    }
    // The last three: this machine's own services are for a provider on this machine alone.
    for url in [
        "http://login.example.com/",
        "file:///etc/passwd",
        "",
        "https://a@b/",
        "//x",
        "http://127.0.0.1.evil/",
        "http://127.0.0.1/",
        "HTTP://localhost/",
        "http://[::1]:9/",
    ] {
        for field in ["authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"] {
            assert!(matches!(document(&json!({field: url})), Err(DiscoveryError::Endpoint { .. })), "{field} {url}");
        }
    }
    let here = Provider { issuer: "http://127.0.0.1:1".to_owned(), ..provider("") };
    let urls = ["authorization_endpoint", "token_endpoint", "jwks_uri"]
        .map(|field| format!("\"{field}\": \"http://[::1]:9/\""));
    let text = format!("{{\"issuer\": \"http://127.0.0.1:1\", {}}}", urls.join(", "));
    assert!(Discovery::parse(text.as_bytes(), &here).is_ok());
    for (field, list) in [
        ("response_types_supported", json!(["id_token"])),
        ("code_challenge_methods_supported", json!(["plain"])),
        ("id_token_signing_alg_values_supported", json!(["HS256", "none"])),
        ("token_endpoint_auth_methods_supported", json!(["private_key_jwt"])),
    ] {
        assert!(matches!(document(&json!({field: list})), Err(DiscoveryError::Unsupported(_))), "{field}");
    }
    assert_eq!(Discovery::parse(b"[]", &provider("")), Err(DiscoveryError::Form));
}

#[test]
fn requests_carry_what_they_must() {
    let secret = provider("client_secret_file = \"x\"");
    let mut attempts = Attempts::default();
    let begun = attempts.begin(now(), &[7; RANDOM_BYTES], "login", "example").unwrap();
    let discovery = document(&json!({})).unwrap();
    let url = authorization_url(&secret, &discovery, "https://vpn.test/oidc/example/callback", &begun);
    assert!(url.starts_with("https://login.example.com/auth?tenant=1&response_type=code&client_id=warren&"), "{url}");
    assert!(
        url.contains("redirect_uri=https%3A%2F%2Fvpn.test%2Foidc%2Fexample%2Fcallback&scope=openid+email+profile&")
    );
    assert!(url.ends_with(&format!(
        "state={}&nonce={}&code_challenge={}&code_challenge_method=S256",
        begun.state, begun.nonce, begun.challenge
    )));
    let attempt = attempts.take(now(), &begun.state, &begun.browser, "example").unwrap();
    let request = TokenRequest::new(&secret, &discovery, "u", "c&d", &attempt);
    let verifier = attempt.verifier.as_str();
    assert_eq!(
        request.body.as_str(),
        format!("grant_type=authorization_code&code=c%26d&redirect_uri=u&code_verifier={verifier}")
    );
    // RFC 6749, section 2.3.1: each part is encoded as in a form before it is joined.
    assert_eq!(request.authorization.unwrap().as_str(), "Basic d2FycmVuOnMzY3JldCUyNQ==");
    let in_body = document(&json!({"token_endpoint_auth_methods_supported": ["client_secret_post"]})).unwrap();
    let request = TokenRequest::new(&secret, &in_body, "u", "c", &attempt);
    assert!(request.authorization.is_none() && request.body.ends_with("&client_id=warren&client_secret=s3cret%25"));
    let request = TokenRequest::new(&provider(""), &discovery, "u", "c", &attempt);
    assert!(request.authorization.is_none() && request.body.ends_with("&client_id=warren"));
    assert_eq!(format!("{:?}", secret.client_secret.unwrap()), "ClientSecret(…)");
}

#[test]
fn a_refusal_of_the_token_endpoint_is_told_without_its_tricks() {
    let refused = Tokens::parse(br#"{"error":"invalid_grant","error_description":"no\u001b[31m"}"#).unwrap_err();
    assert_eq!(refused, TokenError::Refused("invalid_grant no[31m".to_owned()));
    assert_eq!(Tokens::parse(b"{}").unwrap_err(), TokenError::Form);
    let tokens = Tokens::parse(br#"{"id_token":"t","access_token":"a\nb"}"#).unwrap();
    assert!(tokens.access_token.is_none(), "it would break out of its header");
}

fn admit(provider: &str, claims: &Value) -> Result<Person, NotAllowed> {
    self::provider(provider).admit(&check(claims).unwrap())
}

#[test]
fn each_list_must_know_the_person() {
    let ann = json!({"email": "Ann@example.com", "email_verified": true, "groups": ["vpn", "staff"]});
    let unverified = json!({"email": "ann@example.com", "email_verified": false, "groups": "vpn"});
    assert!(admit("", &ann).is_ok() && admit("", &unverified).is_ok());
    let domains = "allowed_domains = [\"Example.com\"]";
    assert!(admit(domains, &ann).is_ok());
    assert_eq!(admit(domains, &unverified), Err(NotAllowed::Domain));
    let sub = json!({"email": "eve@sub.example.com", "email_verified": true});
    assert_eq!(admit(domains, &sub), Err(NotAllowed::Domain));
    let groups = "allowed_groups = [\"vpn\"]";
    assert!(admit(groups, &ann).is_ok() && admit(groups, &unverified).is_ok());
    assert_eq!(admit("allowed_groups = [\"VPN\"]", &ann), Err(NotAllowed::Group));
    assert_eq!(admit("allowed_groups = [\"vpn\"]\ngroups_claim = \"roles\"", &ann), Err(NotAllowed::Group));
    assert!(admit("allowed_users = [\"ANN@example.com\"]", &ann).is_ok());
    assert_eq!(admit("allowed_users = [\"ann@example.com\"]", &unverified), Err(NotAllowed::User));
    assert!(admit("allowed_users = [\"42\"]", &unverified).is_ok());
    let posing = json!({"sub": "ann@example.com"});
    assert_eq!(admit("allowed_users = [\"ann@example.com\"]", &posing), Err(NotAllowed::User));
    let both = "allowed_users = [\"ann@example.com\"]\nallowed_groups = [\"admins\"]";
    assert_eq!(admit(both, &ann), Err(NotAllowed::Group));
}

#[test]
fn a_domain_leads_to_its_tailnet_only_if_the_address_is_verified() {
    let tailnets = "[provider.tailnets]\n\"Example.com\" = \"work\"";
    let tailnet = |provider: &str, email: &str, verified: bool| {
        admit(provider, &json!({"email": email, "email_verified": verified})).unwrap().tailnet
    };
    assert_eq!(tailnet(tailnets, "ann@example.com", true).as_deref(), Some("work"));
    assert_eq!(tailnet(tailnets, "ann@example.com", false), None);
    assert_eq!(tailnet(tailnets, "ann@other.com", true), None);
    let all = "[provider.tailnets]\n\"*\" = \"home\"\n\"example.com\" = \"work\"";
    assert_eq!(tailnet(all, "ann@example.com", true).as_deref(), Some("work"));
    assert_eq!(tailnet(all, "ann@example.com", false).as_deref(), Some("home"));
    assert_eq!(tailnet(all, "ann@gmail.com", true).as_deref(), Some("home"));
}

#[test]
fn a_login_name_is_a_verified_address_or_nobodys_choice() {
    let login = |claims: Value| admit("", &claims).unwrap().login;
    assert_eq!(login(json!({"email": "Ann@example.com", "email_verified": true})), "ann@example.com");
    assert_eq!(login(json!({"email": "ann@example.com", "preferred_username": "ann@example.com"})), "42@example");
    let odd = login(json!({"sub": "ann@example.com"}));
    assert!(odd.ends_with("@example") && odd.len() == 32 + 8 && crate::admin::is_login(&odd), "{odd}");
    assert_ne!(login(json!({"sub": "Ann"})), login(json!({"sub": "ann"})));
    // An address that policies could not name is none.
    assert_eq!(login(json!({"email": "a b@example.com", "email_verified": true})), "42@example");
}

#[test]
fn a_configuration_says_what_is_wrong_with_it() {
    let head = "[[provider]]\nname = \"a\"\nissuer = \"https://a.test\"\nclient_id = \"x\"\n";
    assert_eq!(config(head).unwrap().providers[0].scope(), "openid email profile");
    let google = head.replace("https://a.test", "https://accounts.google.com");
    let cases = [
        ("", "missing field `provider`"),
        ("provider = []", "one [[provider]]"),
        (&format!("{head}clientid = \"y\""), "unknown field `clientid`"),
        (&format!("{head}{head}"), "name or issuer already"),
        (&head.replace("https:", "http:"), "no https URL"),
        (&head.replace("\"a\"", "\"A b\""), "lower-case letters"),
        (&head.replace("\"x\"", "\"\""), "client_id"),
        (&format!("{head}kind = \"github\""), "client_secret_file is missing"),
        (&format!("{head}kind = \"saml\""), "unknown variant `saml`"),
        (&format!("{head}scopes = [\"a b\"]"), "no scope"),
        (&format!("{head}[provider.tailnets]\n\"GMail.com\" = \"home\""), "belongs to no network"),
        (&format!("{head}[provider.tailnets]\n\"a.test\" = \"No\""), "no name of a network"),
        (&format!("{google}[provider.tailnets]\n\"*\" = \"home\""), "anybody gets an account"),
        (
            &format!("{}[provider.tailnets]\n\"*\" = \"home\"", google.replace(".com", ".com/")),
            "anybody gets an account",
        ),
        (
            &format!("{google}allowed_domains = [\"Gmail.com\"]\n[provider.tailnets]\n\"*\" = \"home\""),
            "anybody gets an account",
        ),
    ];
    for (text, wanted) in cases {
        let error = config(text).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.starts_with("oidc.toml: "), "{text}: {error}");
    }
    assert!(
        config(&format!("{google}allowed_users = [\"a@gmail.com\"]\n[provider.tailnets]\n\"*\" = \"home\"")).is_ok()
    );
    let missing = OidcConfig::read(Path::new("/nowhere/oidc.toml")).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/oidc.toml"));
}

#[test]
fn github_answers_at_known_places() {
    let at = |issuer: &str| {
        let text = format!(
            "[[provider]]\nname = \"hub\"\nkind = \"github\"\nissuer = \"{issuer}\"\nclient_id = \"x\"\n\
             client_secret_file = \"s\"\nallowed_groups = [\"example\"]"
        );
        let provider = config(&text).unwrap().providers.remove(0);
        assert_eq!(provider.scope(), "read:user user:email read:org");
        (provider.well_known().unwrap().token, github::api(&provider, "user"))
    };
    for (issuer, api) in [
        ("https://github.com", "https://api.github.com/user"),
        ("https://example.ghe.com", "https://api.example.ghe.com/user"),
        ("https://git.example.com", "https://git.example.com/api/v3/user"),
        ("https://evilgithub.com", "https://evilgithub.com/api/v3/user"),
    ] {
        assert_eq!(at(issuer), (format!("{issuer}/login/oauth/access_token"), api.to_owned()));
    }
    assert_eq!(provider("").well_known(), None);
}

/// What a provider, or somebody who stands in for one, may send: no document at all, or one with odd values.
fn documents() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec![
        "iss",
        "sub",
        "aud",
        "azp",
        "nonce",
        "exp",
        "iat",
        "nbf",
        "email",
        "email_verified",
        "groups",
        "keys",
        "kty",
        "crv",
        "x",
        "y",
        "n",
        "e",
        "kid",
        "alg",
        "issuer",
        "token_endpoint",
        "jwks_uri",
        "id",
        "login",
        "primary",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop::sample::select(vec![ISSUER, "warren", "RSA", "EC", "OKP", "P-256", "Ed25519", "RS256", "n"])
            .prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 24, 4, move |inner| {
        let object = prop::collection::vec((name.clone(), inner.clone()), 0..8)
            .prop_map(|pairs| pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
        prop_oneof![object.prop_map(Value::Object), prop::collection::vec(inner, 0..4).prop_map(Value::Array)]
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..64), value.prop_map(|value| value.to_string().into_bytes())]
}

proptest! {
    #[test]
    fn nothing_that_a_provider_sends_breaks_the_rules_or_is_believed(first in documents(), second in documents()) {
        let provider = provider("");
        prop_assert!(Discovery::parse(&first, &provider).is_err(), "it has no endpoints");
        drop(Tokens::parse(&first));
        let expected = Expected { issuer: ISSUER, client_id: "warren", nonce: "nobody knows it", now: start_of_time() };
        prop_assert!(Claims::check(&first, &expected).is_err());
        if let Ok(claims) = github::claims(&provider, &first, &second, Some(&second)) {
            drop(provider.admit(&claims));
        }
        let keys = KeySet::parse(&first).unwrap_or_default();
        for algorithm in ["RS256", "ES256", "EdDSA"] {
            let header = json!({"alg": algorithm}).to_string();
            let token = format!("{}.{}.{}", encode(header), encode(&first), encode(&second));
            prop_assert!(keys.verify(&token).is_err());
        }
        prop_assert!(keys.verify(&String::from_utf8_lossy(&second)).is_err());
        let mut claims = check(&json!({})).unwrap();
        drop(merge_user_info(&mut claims, &first));
        prop_assert_eq!(&claims.subject, "42");
        drop(provider.admit(&claims));
    }
}

#[test]
fn a_token_is_believed_letter_by_letter() {
    let signer = Signer::new();
    let keys = signer.keys();
    for (alg, kid) in [("EdDSA", "ed"), ("ES256", "ec"), ("RS256", "rsa")] {
        let token = signer.sign(&json!({"alg": alg, "kid": kid}), &payload());
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(keys.verify(&String::from_utf8(changed).unwrap()).is_err(), "{alg}: {at} of {token}");
            assert!(keys.verify(&token[..at]).is_err(), "{alg}: cut at {at} of {token}");
        }
        assert!(keys.verify(&format!("{token}A")).is_err() && keys.verify(&format!("{token}.A")).is_err(), "{alg}");
    }
}
