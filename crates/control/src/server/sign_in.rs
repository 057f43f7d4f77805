//! Logging in with a browser: to a provider, back, a page to confirm on, and the machine is in.
//!
//! `GET /login/ID` shows the machine. `GET /login/ID/start?provider=NAME` sends the browser away with a cookie;
//! `GET /oidc/NAME/callback` takes it back, learns who it is, and shows the page again, which now asks to confirm.
//! `POST /login/ID` does what was confirmed. The rules are in [`crate::oidc`] and [`crate::sign_in`].

pub(crate) mod local;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::body::{Body, Bytes};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::answers::{self, Answer};
use super::fetch::{Ask, FetchError, Fetcher};
use super::login_page::{self, Known};
use super::shared::Arrival;
use super::web::unread;
use crate::oidc::{
    Attempts, Claims, ClaimsError, Discovery, DiscoveryError, Expected, JwsError, KeySet, Kind, LIFETIME, NotAllowed,
    OidcConfig, Person, Provider, RANDOM_BYTES, TokenError, TokenRequest, Tokens, authorization_url, digest, github,
    merge_user_info,
};
use crate::sign_in::{Destination, SignInError};

/// How long a discovery document and a key set are used before they are fetched again.
const FRESH: Duration = Duration::from_secs(3600);
/// How old a key set is at least when a token with an unknown key makes it be fetched again.
const REFETCH_AFTER: Duration = Duration::from_secs(10);
/// How many people may be about to confirm one login; one more ends the oldest.
const LOGIN_MAX: usize = 8;

/// All that logging in with a provider needs.
pub(crate) struct SignIn {
    sources: Vec<Source>,
    fetcher: Option<Fetcher>,
    /// The server's URL, to which browsers come back.
    base: String,
    attempts: Mutex<Attempts>,
    /// People whom a provider vouched for and who have not confirmed yet, by login.
    met: Mutex<HashMap<String, Vec<Met>>>,
}

impl std::fmt::Debug for SignIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignIn").field("base", &self.base).finish_non_exhaustive()
    }
}

/// A provider and what it said last.
struct Source {
    provider: Provider,
    discovery: Mutex<Option<(Arc<Discovery>, Instant)>>,
    keys: Mutex<Option<(Arc<KeySet>, Instant)>>,
}

/// Somebody in front of the page that asks to confirm.
#[derive(Clone)]
struct Met {
    browser: [u8; 32],
    csrf: String,
    person: Person,
    provider: String,
    at: Instant,
}

/// Says why a browser came back in vain. What only the operator can mend is logged, and told without details.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Attempt(#[from] crate::oidc::AttemptError),
    #[error("{title} cannot be asked just now; try again in some minutes. Machines that are in stay in.")]
    Fetch { title: String, error: FetchError },
    #[error("{title} is not set up for this server as it must be; tell its operator")]
    Discovery { title: String, error: DiscoveryError },
    #[error("{title} did not let you in: {reason}")]
    Provider { title: String, reason: String },
    #[error("{title} did not let you in: {error}")]
    Token { title: String, error: TokenError },
    #[error("the answer of {title} cannot be believed: {error}")]
    Signature { title: String, error: JwsError },
    #[error("the answer of {title} cannot be believed: {error}")]
    Claims { title: String, error: ClaimsError },
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    #[error("this callback has no state or no code; begin again")]
    Callback,
    #[error("the server has no randomness; tell its operator")]
    Randomness,
}

impl SignIn {
    /// Prepares logging in with these providers; browsers come back to `base`.
    ///
    /// # Errors
    /// If there are providers and this machine's trusted certificates cannot be had.
    pub(crate) fn new(config: OidcConfig, base: &str) -> Result<Self, rustls::Error> {
        let fetcher = if config.providers.is_empty() { None } else { Some(Fetcher::new()?) };
        let source = |provider| Source { provider, discovery: Mutex::default(), keys: Mutex::default() };
        Ok(Self {
            sources: config.providers.into_iter().map(source).collect(),
            fetcher,
            base: base.to_owned(),
            attempts: Mutex::default(),
            met: Mutex::default(),
        })
    }

    /// Returns provider and name of the tailnets that the configuration names and the server does not know.
    pub(crate) fn missing(&self, known: impl Fn(&str) -> bool) -> Vec<(&str, &str)> {
        let named = self.sources.iter().flat_map(|source| {
            source.provider.tailnets.values().map(|tailnet| (source.provider.name.as_str(), tailnet.as_str()))
        });
        named.filter(|(_, tailnet)| !known(tailnet)).collect()
    }

    fn source(&self, name: &str) -> Option<(&Source, &Fetcher)> {
        let source = self.sources.iter().find(|source| source.provider.name == name)?;
        Some((source, self.fetcher.as_ref()?))
    }

    fn is_tls(&self) -> bool {
        self.base.starts_with("https://")
    }

    /// Names the cookie of a login: each has its own, so that two at a time do not mix.
    fn cookie_name(&self, id: &str) -> String {
        let id: String = id.chars().take(8).collect();
        if self.is_tls() { format!("__Host-warren-login-{id}") } else { format!("warren-login-{id}") }
    }

    /// Returns what a browser keeps of a login.
    fn cookie<'a>(&self, headers: &'a HeaderMap, id: &str) -> Option<&'a str> {
        let name = self.cookie_name(id);
        let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.filter(|(found, _)| *found == name).map(|(_, value)| value).next()
    }

    fn redirect_uri(&self, provider: &Provider) -> String {
        format!("{}/oidc/{}/callback", self.base, provider.name)
    }

    fn remember(&self, id: &str, met: Met) {
        let mut all = lock(&self.met);
        all.retain(|_, people| {
            people.retain(|person| met.at.saturating_duration_since(person.at) < LIFETIME);
            !people.is_empty()
        });
        let people = all.entry(id.to_owned()).or_default();
        people.retain(|person| person.browser != met.browser);
        if people.len() >= LOGIN_MAX {
            people.remove(0);
        }
        people.push(met);
    }

    /// Finds who is in front of this browser.
    fn met(&self, now: Instant, id: &str, headers: &HeaderMap) -> Option<Met> {
        let browser = digest(self.cookie(headers, id)?);
        let all = lock(&self.met);
        let people = all.get(id)?.iter();
        let mut own = people.filter(|person| bool::from(person.browser.ct_eq(&browser)));
        own.find(|person| now.saturating_duration_since(person.at) < LIFETIME).cloned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows a login: the machine and the ways to let it in or, once a provider vouched, what is to be confirmed.
pub(crate) fn show(arrival: &Arrival, id: &str, headers: &HeaderMap) -> Answer {
    let (control, sign_in) = (&arrival.shared.control, &arrival.shared.sign_in);
    let Ok(login) = control.admin(crate::Who::server()).login(id) else { return login_page::gone() };
    let known = sign_in.met(control.clock().instant(), id, headers).map(|met| {
        let hint = login.tailnet_hint.as_deref().unwrap_or_default();
        let tailnets = match control.destination(&met.person, hint) {
            Destination::Tailnets(own) => Some(own.iter().map(|tailnet| tailnet.name.to_string()).collect()),
            Destination::New => Some(Vec::new()),
            Destination::Approval => None,
        };
        Known { person: met.person, provider: met.provider, csrf: met.csrf, tailnets }
    });
    let providers: Vec<_> =
        sign_in.sources.iter().map(|source| (source.provider.name.as_str(), source.provider.title.as_str())).collect();
    login_page::show(&login, &providers, control.has_accounts(), known.as_ref())
}

/// Sends a browser to the provider that the query names.
pub(crate) async fn start(arrival: &Arrival, id: &str, query: Option<&str>) -> Answer {
    let (control, sign_in) = (&arrival.shared.control, &arrival.shared.sign_in);
    if control.admin(crate::Who::server()).login(id).is_err() {
        return login_page::gone();
    }
    let named = super::web::parameter(query, "provider").unwrap_or_default();
    let Some((source, fetcher)) = sign_in.source(named) else { return answers::nothing_here() };
    let now = control.clock().instant();
    let discovery = match source.discovery(fetcher, now).await {
        Ok(discovery) => discovery,
        Err(failed) => return refuse(&failed, id),
    };
    let mut random = zeroize::Zeroizing::new([0; RANDOM_BYTES]);
    if getrandom::fill(random.as_mut_slice()).is_err() {
        return refuse(&Failed::Randomness, id);
    }
    let begun = match lock(&sign_in.attempts).begin(now, &random, id, named) {
        Ok(begun) => begun,
        Err(error) => return login_page::failed(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), Some(id)),
    };
    let provider = &source.provider;
    let url = authorization_url(provider, &discovery, &sign_in.redirect_uri(provider), &begun);
    sign_in.keep(id, &begun.browser, redirect(&url))
}

/// Takes a browser back from the provider `name`.
pub(crate) async fn callback(arrival: &Arrival, name: &str, query: Option<&str>, headers: &HeaderMap) -> Answer {
    let sign_in = &arrival.shared.sign_in;
    let Some((source, fetcher)) = sign_in.source(name) else { return answers::nothing_here() };
    let query: HashMap<_, _> = form_urlencoded::parse(query.unwrap_or_default().as_bytes()).take(32).collect();
    let state = query.get("state").map(AsRef::as_ref).unwrap_or_default();
    let id = lock(&sign_in.attempts).login_of(state).map(str::to_owned);
    let browser = id.as_deref().and_then(|id| sign_in.cookie(headers, id)).unwrap_or_default().to_owned();
    match came_back(arrival, source, fetcher, &query, &browser).await {
        Ok(id) => redirect(&format!("{}/login/{id}", sign_in.base)),
        Err(failed) => {
            // The login's own page is offered only to the browser that began there.
            let id = id.filter(|_| !browser.is_empty());
            refuse(&failed, id.as_deref().unwrap_or_default())
        }
    }
}

/// Learns who is in front of a browser that came back; returns the login that it is for.
async fn came_back(
    arrival: &Arrival,
    source: &Source,
    fetcher: &Fetcher,
    query: &HashMap<std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>>,
    browser: &str,
) -> Result<String, Failed> {
    let (control, sign_in) = (&arrival.shared.control, &arrival.shared.sign_in);
    let (clock, provider) = (control.clock(), &source.provider);
    let title = || provider.title.clone();
    let parameter = |name: &str| query.get(name).map(AsRef::as_ref).filter(|value: &&str| !value.is_empty());
    let state = parameter("state").ok_or(Failed::Callback)?;
    let attempt = lock(&sign_in.attempts).take(clock.instant(), state, browser, &provider.name)?;
    let discovery = source.discovery(fetcher, clock.instant()).await?;
    let named = parameter("iss");
    if named.is_some_and(|issuer| issuer != provider.issuer) || (named.is_none() && discovery.names_itself) {
        return Err(crate::oidc::AttemptError::OtherProvider.into());
    }
    if let Some(error) = parameter("error") {
        let text = format!("{error} {}", parameter("error_description").unwrap_or_default());
        let reason = text.trim().chars().filter(|letter| !letter.is_control()).take(200).collect();
        return Err(Failed::Provider { title: title(), reason });
    }
    let code = parameter("code").ok_or(Failed::Callback)?;
    let request = TokenRequest::new(provider, &discovery, &sign_in.redirect_uri(provider), code, &attempt);
    let authorization = request.authorization.as_ref().map(|value| value.as_str());
    let ask = Ask { url: &discovery.token, authorization, form: Some(&request.body) };
    let fetch = |error| Failed::Fetch { title: title(), error };
    let (status, body) = fetcher.ask(&ask).await.map_err(fetch)?;
    if !matches!(status, StatusCode::OK | StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED) {
        return Err(fetch(FetchError::Status { url: discovery.token.clone(), status: status.as_u16() }));
    }
    let tokens = Tokens::parse(&body).map_err(|error| Failed::Token { title: title(), error })?;
    let claims = match provider.kind {
        Kind::Oidc => {
            let id_token = tokens.id_token.as_deref();
            let id_token = id_token.ok_or_else(|| Failed::Token { title: title(), error: TokenError::Form })?;
            let payload = source.verify(fetcher, &discovery, id_token, clock.instant()).await?;
            let (issuer, client_id) = (provider.issuer.as_str(), provider.client_id.as_str());
            let expected = Expected { issuer, client_id, nonce: &attempt.nonce, now: clock.now() };
            let claims = Claims::check(&payload, &expected);
            let claims = claims.map_err(|error| Failed::Claims { title: title(), error })?;
            source.told_more(fetcher, &discovery, &tokens, claims).await?
        }
        Kind::GitHub => source.told_by_github(fetcher, &tokens).await?,
    };
    let person = provider.admit(&claims)?;
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|_| Failed::Randomness)?;
    let csrf = URL_SAFE_NO_PAD.encode(random);
    tracing::debug!(login = attempt.login, provider = provider.name, "a provider vouches for a person");
    let met = Met { browser: attempt.browser, csrf, person, provider: title(), at: clock.instant() };
    sign_in.remember(&attempt.login, met);
    Ok(attempt.login)
}

impl Source {
    /// Returns where the provider answers: as it said lately or, if it says nothing now, as it said last.
    async fn discovery(&self, fetcher: &Fetcher, now: Instant) -> Result<Arc<Discovery>, Failed> {
        if let Some(discovery) = self.provider.well_known() {
            return Ok(Arc::new(discovery));
        }
        let kept = lock(&self.discovery).clone();
        if let Some((discovery, at)) = &kept
            && now.saturating_duration_since(*at) < FRESH
        {
            return Ok(Arc::clone(discovery));
        }
        let title = || self.provider.title.clone();
        let fetched = match fetcher.get(&self.provider.discovery_url(), None).await {
            Ok(json) => {
                Discovery::parse(&json, &self.provider).map_err(|error| Failed::Discovery { title: title(), error })
            }
            Err(error) => Err(Failed::Fetch { title: title(), error }),
        };
        match (fetched, kept) {
            (Ok(discovery), _) => {
                let discovery = Arc::new(discovery);
                *lock(&self.discovery) = Some((Arc::clone(&discovery), now));
                Ok(discovery)
            }
            (Err(failed), Some((discovery, _))) => {
                tracing::warn!(provider = self.provider.name, reason = %Reason(&failed), "an identity provider is in trouble");
                Ok(discovery)
            }
            (Err(failed), None) => Err(failed),
        }
    }

    /// Asks for what the token does not say and the rules want to know.
    async fn told_more(
        &self,
        fetcher: &Fetcher,
        discovery: &Discovery,
        tokens: &Tokens,
        mut claims: Claims,
    ) -> Result<Claims, Failed> {
        let provider = &self.provider;
        let told_all =
            claims.has("email") && (provider.allowed_groups.is_empty() || claims.has(&provider.groups_claim));
        if let (false, Some(url), Some(token)) = (told_all, &discovery.user_info, &tokens.access_token) {
            let more = self.ask(fetcher, url, token).await?;
            merge_user_info(&mut claims, &more)
                .map_err(|error| Failed::Claims { title: provider.title.clone(), error })?;
        }
        Ok(claims)
    }

    /// Asks GitHub's API who it is.
    async fn told_by_github(&self, fetcher: &Fetcher, tokens: &Tokens) -> Result<Claims, Failed> {
        let provider = &self.provider;
        let title = || provider.title.clone();
        let token = tokens.access_token.as_ref();
        let token = token.ok_or_else(|| Failed::Token { title: title(), error: TokenError::Form })?;
        let url = |path| github::api(provider, path);
        let user = self.ask(fetcher, &url("user"), token).await?;
        let addresses = self.ask(fetcher, &url("user/emails?per_page=100"), token).await?;
        let organisations = match provider.allowed_groups.is_empty() {
            true => None,
            false => Some(self.ask(fetcher, &url("user/orgs?per_page=100"), token).await?),
        };
        github::claims(provider, &user, &addresses, organisations.as_deref())
            .map_err(|error| Failed::Claims { title: title(), error })
    }

    /// Gets a document in the name of the person.
    async fn ask(&self, fetcher: &Fetcher, url: &str, token: &str) -> Result<Bytes, Failed> {
        let bearer = zeroize::Zeroizing::new(format!("Bearer {token}"));
        let got = fetcher.get(url, Some(&bearer)).await;
        got.map_err(|error| Failed::Fetch { title: self.provider.title.clone(), error })
    }

    /// Checks a token, with fresh keys if it names one that is not known.
    async fn verify(
        &self,
        fetcher: &Fetcher,
        discovery: &Discovery,
        token: &str,
        now: Instant,
    ) -> Result<Vec<u8>, Failed> {
        let wrong = |error| Failed::Signature { title: self.provider.title.clone(), error };
        let kept = lock(&self.keys).clone();
        if let Some((keys, at)) = kept {
            let age = now.saturating_duration_since(at);
            let result = keys.verify(token);
            let stale = age >= FRESH || (result == Err(JwsError::UnknownKey) && age >= REFETCH_AFTER);
            if !stale {
                return result.map_err(wrong);
            }
        }
        let fetched = fetcher.get(&discovery.keys, None).await;
        let json = fetched.map_err(|error| Failed::Fetch { title: self.provider.title.clone(), error })?;
        let keys = Arc::new(KeySet::parse(&json).map_err(wrong)?);
        *lock(&self.keys) = Some((Arc::clone(&keys), now));
        keys.verify(token).map_err(wrong)
    }
}

/// Does what a person confirmed on the page.
pub(crate) async fn confirm<B>(arrival: &Arrival, id: &str, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let (control, sign_in) = (&arrival.shared.control, &arrival.shared.sign_in);
    let (head, body) = request.into_parts();
    let body = match arrival.shared.bodies.read(body).await {
        Ok(body) => body,
        Err(error) => return unread(error),
    };
    let again = |status, text: &str| login_page::failed(status, text, Some(id));
    let Some(met) = sign_in.met(control.clock().instant(), id, &head.headers) else {
        return again(StatusCode::FORBIDDEN, "This browser has not logged in, or too long ago.");
    };
    let form: HashMap<_, _> = form_urlencoded::parse(&body).take(16).collect();
    let field = |name: &str| form.get(name).map(AsRef::as_ref).unwrap_or_default();
    // Browsers say where a form was; one that does not still has to know the token.
    if !sign_in.is_from_here(&head.headers) || !bool::from(digest(field("csrf")).ct_eq(&digest(&met.csrf))) {
        return again(StatusCode::FORBIDDEN, "This form is not from this page, or too old.");
    }
    match field("decision") {
        "confirm" => {
            let chosen = Some(field("tailnet")).filter(|name| !name.is_empty());
            match Box::pin(control.sign_in(id, &met.person, chosen)).await {
                Ok(outcome) => login_page::done(&outcome),
                Err(error @ SignInError::Gone) => again(StatusCode::GONE, &error.to_string()),
                Err(error) => {
                    tracing::info!(login = id, who = met.person.login, %error, "a login is refused");
                    again(StatusCode::CONFLICT, &error.to_string())
                }
            }
        }
        "reject" => match control.admin(crate::Who::user(&met.person.login)).reject_login(id) {
            Ok(_) => login_page::rejected(),
            Err(_) => login_page::gone(),
        },
        _ => again(StatusCode::BAD_REQUEST, "This form says neither yes nor no."),
    }
}

/// Shows why a login came to nothing, and logs what the operator should know.
fn refuse(failed: &Failed, id: &str) -> Answer {
    let status = match failed {
        Failed::Attempt(_) | Failed::Callback => StatusCode::BAD_REQUEST,
        Failed::Fetch { .. } | Failed::Discovery { .. } => StatusCode::BAD_GATEWAY,
        Failed::Provider { .. } | Failed::Token { .. } | Failed::Signature { .. } | Failed::Claims { .. } => {
            StatusCode::FORBIDDEN
        }
        Failed::NotAllowed(_) => StatusCode::FORBIDDEN,
        Failed::Randomness => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if matches!(failed, Failed::Attempt(_) | Failed::Callback) {
        tracing::debug!(reason = %Reason(failed), "a callback leads nowhere");
    } else {
        tracing::warn!(login = id, reason = %Reason(failed), "a login with an identity provider failed");
    }
    login_page::failed(status, &failed.to_string(), Some(id).filter(|id| !id.is_empty()))
}

/// What a failure is for the log, which may say more than a page.
struct Reason<'a>(&'a Failed);

impl std::fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Failed::Fetch { title, error } = self.0 {
            return write!(f, "{title}: {error}");
        }
        if let Failed::Discovery { title, error } = self.0 {
            return write!(f, "{title}: {error}");
        }
        self.0.fmt(f)
    }
}

fn redirect(url: &str) -> Answer {
    let answer = answers::page(StatusCode::SEE_OTHER, String::new());
    match HeaderValue::try_from(url) {
        Ok(value) => answers::with_header(answer, header::LOCATION, value),
        // URLs come from the operator and from encoders; one that is no header value leads nowhere.
        Err(_) => answers::nothing_here(),
    }
}
