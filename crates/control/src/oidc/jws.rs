//! Signed tokens and the keys that they are checked with (RFC 7515, 7517, 7518).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// Longest token, in bytes.
const TOKEN_MAX: usize = 64 * 1024;
/// How many keys of a provider are kept.
const KEYS_MAX: usize = 64;
/// First byte of an uncompressed point (SEC 1, section 2.3.3).
const UNCOMPRESSED: u8 = 4;

/// Says why a token is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JwsError {
    #[error("the key set is no JSON that a key set has")]
    KeySet,
    #[error("the token has no form that a signed token has")]
    Form,
    #[error("the token is signed with {found:?}; only RS256, ES256 and EdDSA are believed")]
    Algorithm { found: String },
    #[error("the token demands extensions that are not known here")]
    Critical,
    #[error("the token is signed with a key that the provider does not publish")]
    UnknownKey,
    #[error("the signature is wrong")]
    Signature,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Es256,
    EdDsa,
}

impl Algorithm {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" | "Ed25519" => Some(Self::EdDsa),
            _ => None,
        }
    }
}

/// Tells whether tokens signed with this algorithm can be believed.
pub(super) fn is_known_algorithm(name: &str) -> bool {
    Algorithm::parse(name).is_some()
}

/// The keys that a provider publishes, as far as they can be used here.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug, Clone)]
struct Key {
    id: Option<String>,
    material: Material,
}

#[derive(Debug, Clone)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256([u8; 65]),
    Ed25519([u8; 32]),
}

impl Material {
    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Rsa { .. } => Algorithm::Rs256,
            Self::P256(_) => Algorithm::Es256,
            Self::Ed25519(_) => Algorithm::EdDsa,
        }
    }
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

impl KeySet {
    /// Reads the document behind `jwks_uri`; keys for other purposes or algorithms are passed over.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, JwsError> {
        let set: RawSet = serde_json::from_slice(json).map_err(|_| JwsError::KeySet)?;
        let raw = set.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok());
        Ok(Self { keys: raw.filter_map(key).take(KEYS_MAX).collect() })
    }

    /// Checks the signature of a compact token and returns its payload.
    pub(crate) fn verify(&self, token: &str) -> Result<Vec<u8>, JwsError> {
        if token.len() > TOKEN_MAX {
            return Err(JwsError::Form);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwsError::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(JwsError::Form)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| JwsError::Form);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| JwsError::Form)?;
        let (payload, signature) = (decode(payload)?, decode(signature)?);
        let algorithm = Algorithm::parse(&header.alg)
            .ok_or_else(|| JwsError::Algorithm { found: header.alg.chars().take(16).collect() })?;
        if header.crit.is_some() {
            return Err(JwsError::Critical);
        }
        let mut fitting = self
            .keys
            .iter()
            .filter(|key| key.material.algorithm() == algorithm && (header.kid.is_none() || key.id == header.kid));
        let key = fitting.next().ok_or(JwsError::UnknownKey)?;
        // A token names its key unless there is only one (OpenID Connect Core, section 10.1).
        if header.kid.is_none() && fitting.next().is_some() {
            return Err(JwsError::UnknownKey);
        }
        key.verify(signed.as_bytes(), &signature).map_err(|_| JwsError::Signature)?;
        Ok(payload)
    }
}

impl Key {
    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), aws_lc_rs::error::Unspecified> {
        match &self.material {
            Material::Rsa { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            Material::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature),
            Material::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature),
        }
    }
}

/// Takes a published key, unless it is for something else.
fn key(raw: RawKey) -> Option<Key> {
    let decode = |part: Option<String>| URL_SAFE_NO_PAD.decode(part?).ok();
    let coordinate = |part: Option<String>| <[u8; 32]>::try_from(decode(part)?).ok();
    let material = match (raw.kty.as_str(), raw.crv.as_deref()) {
        ("RSA", _) => Material::Rsa { n: decode(raw.n)?, e: decode(raw.e)? },
        ("EC", Some("P-256")) => {
            let (x, y) = (coordinate(raw.x)?, coordinate(raw.y)?);
            let mut point = [UNCOMPRESSED; 65];
            let (_, coordinates) = point.split_at_mut(1);
            coordinates.iter_mut().zip(x.iter().chain(&y)).for_each(|(to, from)| *to = *from);
            Material::P256(point)
        }
        ("OKP", Some("Ed25519")) => Material::Ed25519(coordinate(raw.x)?),
        _ => return None,
    };
    let for_signatures = raw.purpose.is_none_or(|purpose| purpose == "sig");
    let for_algorithm = raw.alg.is_none_or(|name| Algorithm::parse(&name) == Some(material.algorithm()));
    (for_signatures && for_algorithm).then_some(Key { id: raw.kid, material })
}
