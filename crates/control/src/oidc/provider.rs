//! Identity providers as the operator wrote them down.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::discovery::{Discovery, is_secure};
use super::github;
use super::rules::EVERYBODY;
use crate::domains;
use crate::name::is_label;

/// How many providers there may be.
const PROVIDERS_MAX: usize = 16;
/// Longest file, of the configuration or of a secret, in bytes.
const FILE_MAX: u64 = 256 * 1024;
/// Issuers at which anybody gets an account, so that being known there means nothing.
const OPEN_TO_ALL: [&str; 7] = [
    "https://accounts.google.com",
    "https://appleid.apple.com",
    "https://github.com",
    "https://gitlab.com",
    "https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0",
    "https://login.microsoftonline.com/common/v2.0",
    "https://www.linkedin.com/oauth",
];

/// Says what is wrong with the file of identity providers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OidcConfigError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file is longer than anything it can have to say.
    #[error("{} is longer than {FILE_MAX} bytes; is it the right file?", path.display())]
    Long {
        /// The file.
        path: PathBuf,
    },
    /// The text is not as it must be.
    #[error("{}: {reason}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// A provider is not as it must be.
    #[error("{}: provider {name:?}: {reason}", path.display())]
    Provider {
        /// The file.
        path: PathBuf,
        /// Name of the provider.
        name: String,
        /// What is wrong and what to write.
        reason: String,
    },
}

/// The identity providers of a server.
#[derive(Debug, Clone, Default)]
pub struct OidcConfig {
    pub(crate) providers: Vec<Provider>,
}

/// The secret that a provider shares with us.
#[derive(Clone)]
pub(crate) struct ClientSecret(Zeroizing<String>);

impl ClientSecret {
    /// Shows the secret, to send it to the provider.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret(…)")
    }
}

/// What a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// OpenID Connect.
    #[default]
    Oidc,
    /// OAuth 2 as GitHub has it.
    GitHub,
}

/// An identity provider.
#[derive(Debug, Clone)]
pub(crate) struct Provider {
    /// Short name: one DNS label, part of URLs and of login names.
    pub(crate) name: String,
    /// Name to show.
    pub(crate) title: String,
    /// What it speaks.
    pub(crate) kind: Kind,
    /// Issuer, as its tokens have it.
    pub(crate) issuer: String,
    /// Our name there.
    pub(crate) client_id: String,
    /// Our secret there; a provider that knows us as a public client shares none.
    pub(crate) client_secret: Option<ClientSecret>,
    /// What we ask for beside `openid`.
    pub(crate) scopes: Vec<String>,
    /// Domains of verified e-mail addresses that may come in; all if empty.
    pub(crate) allowed_domains: Vec<String>,
    /// Groups that may come in; all if empty.
    pub(crate) allowed_groups: Vec<String>,
    /// Verified e-mail addresses, which have an `@`, or subjects, that may come in; all if empty.
    pub(crate) allowed_users: Vec<String>,
    /// Claim that lists the groups.
    pub(crate) groups_claim: String,
    /// Tailnet of each domain of verified e-mail addresses; `*` stands for everybody.
    pub(crate) tailnets: BTreeMap<String, String>,
    /// Whether whoever has no tailnet makes one of their own.
    pub(crate) new_tailnets: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    provider: Vec<RawProvider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProvider {
    name: String,
    title: Option<String>,
    #[serde(default)]
    kind: Kind,
    issuer: String,
    client_id: String,
    client_secret_file: Option<PathBuf>,
    scopes: Option<Vec<String>>,
    #[serde(default)]
    allowed_domains: Vec<String>,
    #[serde(default)]
    allowed_groups: Vec<String>,
    #[serde(default)]
    allowed_users: Vec<String>,
    #[serde(default = "usual_groups_claim")]
    groups_claim: String,
    #[serde(default)]
    tailnets: BTreeMap<String, String>,
    #[serde(default)]
    new_tailnets: bool,
}

/// What is asked for unless the operator says otherwise.
fn usual_scopes(raw: &RawProvider) -> Vec<String> {
    let scopes: &[&str] = match (raw.kind, raw.allowed_groups.is_empty()) {
        (Kind::Oidc, _) => &["email", "profile"],
        (Kind::GitHub, true) => &["read:user", "user:email"],
        (Kind::GitHub, false) => &["read:user", "user:email", "read:org"],
    };
    scopes.iter().map(|&scope| scope.to_owned()).collect()
}

fn usual_groups_claim() -> String {
    "groups".to_owned()
}

impl OidcConfig {
    /// Reads the file and the secrets that it names; relative names are looked up beside the file.
    ///
    /// # Errors
    /// [`OidcConfigError`] names the file and what to write instead.
    pub fn read(path: &Path) -> Result<Self, OidcConfigError> {
        let text = read_text(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, path, |secret| read_text(&folder.join(secret)))
    }

    /// Reads a text of the file `path`; `secret` reads the file of a secret.
    pub(crate) fn parse(
        text: &str,
        path: &Path,
        secret: impl Fn(&Path) -> Result<Zeroizing<String>, OidcConfigError>,
    ) -> Result<Self, OidcConfigError> {
        let wrong = |reason: String| OidcConfigError::Text { path: path.to_owned(), reason };
        let raw: RawConfig = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if raw.provider.is_empty() || raw.provider.len() > PROVIDERS_MAX {
            return Err(wrong(format!("write one [[provider]] at least and {PROVIDERS_MAX} at most")));
        }
        let mut providers: Vec<Provider> = Vec::new();
        for raw in raw.provider {
            let name = raw.name.clone();
            let failed = |reason: String| OidcConfigError::Provider { path: path.to_owned(), name, reason };
            if providers.iter().any(|other| other.name == raw.name || other.issuer == raw.issuer) {
                return Err(failed("another provider has that name or issuer already".to_owned()));
            }
            let shared = raw.client_secret_file.as_deref().map(&secret).transpose()?;
            providers.push(provider(raw, shared).map_err(failed)?);
        }
        Ok(Self { providers })
    }
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, OidcConfigError> {
    use std::io::Read as _;
    let failed = |error| OidcConfigError::Read { path: path.to_owned(), error };
    let mut text = Zeroizing::new(String::new());
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_MAX {
        return Err(OidcConfigError::Long { path: path.to_owned() });
    }
    Ok(text)
}

/// Checks what was written down of a provider.
fn provider(raw: RawProvider, secret: Option<Zeroizing<String>>) -> Result<Provider, String> {
    if !is_label(&raw.name) {
        return Err("its name must be of lower-case letters, digits and dashes".to_owned());
    }
    if !is_secure(&raw.issuer) || raw.issuer.contains('?') {
        return Err(format!("issuer: {:?} is no https URL", raw.issuer));
    }
    let printable = |text: &String| !text.is_empty() && !text.chars().any(char::is_control);
    if !printable(&raw.client_id) || !raw.title.as_ref().is_none_or(printable) {
        return Err("client_id and title must not be empty".to_owned());
    }
    let client_secret = match secret {
        None if raw.kind == Kind::GitHub => return Err("client_secret_file is missing; GitHub wants one".to_owned()),
        None => None,
        Some(text) if text.trim().is_empty() => return Err("client_secret_file: the file is empty".to_owned()),
        Some(text) => Some(ClientSecret(Zeroizing::new(text.trim().to_owned()))),
    };
    let token = |scope: &&String| scope.is_empty() || !scope.bytes().all(|byte| byte.is_ascii_graphic());
    let scopes = raw.scopes.clone().unwrap_or_else(|| usual_scopes(&raw));
    if let Some(scope) = scopes.iter().find(token) {
        return Err(format!("scopes: {scope:?} is no scope"));
    }
    // Everybody at a public mail provider is still everybody.
    let some_domains = !raw.allowed_domains.is_empty()
        && !raw.allowed_domains.iter().any(|name| domains::is_public(&name.to_lowercase()));
    let lists = some_domains || !raw.allowed_groups.is_empty() || !raw.allowed_users.is_empty();
    let open_to_all = OPEN_TO_ALL.contains(&raw.issuer.to_lowercase().trim_end_matches('/'));
    for (domain, tailnet) in &raw.tailnets {
        if !is_label(tailnet) {
            return Err(format!("tailnets: {tailnet:?} is no name of a network"));
        }
        if domains::is_public(&domain.to_lowercase()) {
            return Err(format!(
                "tailnets: anybody gets an address at {domain}, so it belongs to no network; list people in allowed_users"
            ));
        }
        if domain == EVERYBODY && !lists && open_to_all {
            return Err(format!(
                "tailnets: anybody gets an account at {}; say who may come in with allowed_users, allowed_groups or allowed_domains of your own",
                raw.issuer
            ));
        }
    }
    let lower = |list: Vec<String>| list.into_iter().map(|text| text.to_lowercase()).collect();
    Ok(Provider {
        title: raw.title.unwrap_or_else(|| raw.name.clone()),
        name: raw.name,
        kind: raw.kind,
        issuer: raw.issuer,
        client_id: raw.client_id,
        client_secret,
        scopes,
        allowed_domains: lower(raw.allowed_domains),
        allowed_groups: raw.allowed_groups,
        // Subjects are compared letter by letter, addresses in lower case.
        allowed_users: raw
            .allowed_users
            .into_iter()
            .map(|user| if user.contains('@') { user.to_lowercase() } else { user })
            .collect(),
        groups_claim: raw.groups_claim,
        tailnets: raw.tailnets.into_iter().map(|(domain, tailnet)| (domain.to_lowercase(), tailnet)).collect(),
        new_tailnets: raw.new_tailnets,
    })
}

impl Provider {
    /// Returns all that we ask for, as the parameter `scope` has it.
    pub(crate) fn scope(&self) -> String {
        let first = (self.kind == Kind::Oidc).then_some("openid");
        let more = self.scopes.iter().filter(|scope| *scope != "openid").map(String::as_str);
        first.into_iter().chain(more).collect::<Vec<_>>().join(" ")
    }

    /// Returns where it answers, if that needs no discovery document.
    pub(crate) fn well_known(&self) -> Option<Discovery> {
        (self.kind == Kind::GitHub).then(|| github::discovery(self))
    }

    /// Returns the URL of the discovery document.
    pub(crate) fn discovery_url(&self) -> String {
        format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'))
    }
}
