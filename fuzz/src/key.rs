//! Keys as text.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use warren_wire::key::{ChallengeKey, DiscoKey, MachineKey, NodeKey, NodeSecret};

/// Reads `data` as every kind of key and as a stored secret; at most one kind of key may accept a text.
pub fn keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let accepted = [key::<NodeKey>(text), key::<MachineKey>(text), key::<DiscoKey>(text), key::<ChallengeKey>(text)];
    assert!(accepted.iter().filter(|accepted| **accepted).count() <= 1, "{text:?} is a key of two kinds");
    if let Ok(secret) = NodeSecret::from_storage_text(text) {
        // Not the same text: some bits of a private key do not count, and are set when it is read (RFC 7748, section 5).
        let again = NodeSecret::from_storage_text(&secret.to_storage_text()).expect("what was written can be read");
        assert!(again == secret, "the key changes on disk");
    }
}

/// Tells whether a text is a key; its own text must be the same but for the digits' case, in JSON too.
fn key<K: FromStr<Err: Debug> + Display + Debug + PartialEq + Serialize + DeserializeOwned>(text: &str) -> bool {
    let json = serde_json::to_vec(text).expect("a text is JSON");
    let in_json = serde_json::from_slice::<K>(&json);
    let Ok(key) = text.parse::<K>() else {
        assert!(in_json.is_err(), "JSON accepts what the text form does not: {text:?}");
        return false;
    };
    assert_eq!(key.to_string(), text.to_ascii_lowercase());
    assert_eq!(in_json.expect("a key in JSON is its text"), key);
    true
}
