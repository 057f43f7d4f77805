//! Tokens of OAuth clients: an hour long, and in memory alone; a client whose token is gone gets another.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::auth_key::{self, KeyText};
use crate::authority::Shown;

/// How long a token works.
pub(crate) const LIFETIME: Duration = Duration::from_secs(3600);
/// How many tokens a client may have; one more ends its oldest.
const PER_CLIENT: usize = 100;
/// How many there are in all; one more ends the oldest of whichever client.
const TOTAL: usize = 20_000;

/// The tokens that were given out.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    issued: Mutex<HashMap<String, Token>>,
}

#[derive(Debug)]
struct Token {
    hash: [u8; 32],
    shown: Shown,
    issued: Timestamp,
}

impl Tokens {
    /// Gives out a token for a client.
    pub(crate) fn issue(&self, shown: Shown, now: Timestamp) -> Result<KeyText, getrandom::Error> {
        let fresh = auth_key::generate(auth_key::API_KEY)?;
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        issued.retain(|_, token| is_fresh(token, now));
        let of_client = |token: &Token| token.shown.id == shown.id;
        if issued.values().filter(|token| of_client(token)).count() >= PER_CLIENT {
            forget_oldest(&mut issued, of_client);
        } else if issued.len() >= TOTAL {
            forget_oldest(&mut issued, |_| true);
        }
        issued.insert(fresh.id, Token { hash: fresh.hash, shown, issued: now });
        Ok(fresh.text)
    }

    /// Finds the token whose secret was shown.
    pub(crate) fn find(&self, shown: &auth_key::Shown, now: Timestamp) -> Option<Shown> {
        let issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        let token = issued.get(&shown.id).filter(|token| is_fresh(token, now))?;
        auth_key::matches(shown, &token.hash).then(|| token.shown.clone())
    }
}

fn is_fresh(token: &Token, now: Timestamp) -> bool {
    token.issued.checked_add(LIFETIME).is_ok_and(|end| now < end)
}

fn forget_oldest(issued: &mut HashMap<String, Token>, which: impl Fn(&Token) -> bool) {
    let oldest = issued.iter().filter(|(_, token)| which(token)).min_by_key(|(_, token)| token.issued);
    if let Some(id) = oldest.map(|(id, _)| id.clone()) {
        issued.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Rights;
    use crate::model::TailnetId;

    fn client(id: &str) -> Shown {
        Shown { tailnet: TailnetId(1), id: id.to_owned(), limit: Rights::ALL, tags: None }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn find(tokens: &Tokens, text: &KeyText, now: Timestamp) -> Option<String> {
        let shown = auth_key::parse(auth_key::API_KEY, text.expose()).unwrap();
        tokens.find(&shown, now).map(|shown| shown.id)
    }

    #[test]
    fn a_token_works_for_an_hour_and_with_its_own_secret_alone() {
        let tokens = Tokens::default();
        let text = tokens.issue(client("a"), at(0)).unwrap();
        assert_eq!(find(&tokens, &text, at(3599)).as_deref(), Some("a"));
        assert_eq!(find(&tokens, &text, at(3600)), None);
        let other = tokens.issue(client("b"), at(0)).unwrap();
        let (id, secret) = (&text.expose()[..22], &other.expose()[22..]);
        let shown = auth_key::parse(auth_key::API_KEY, &format!("{id}{secret}")).unwrap();
        assert!(tokens.find(&shown, at(1)).is_none());
    }

    #[test]
    fn a_client_that_asks_for_ever_more_loses_its_oldest_and_nobody_elses() {
        let tokens = Tokens::default();
        let other = tokens.issue(client("other"), at(0)).unwrap();
        let first = tokens.issue(client("a"), at(1)).unwrap();
        let second = tokens.issue(client("a"), at(2)).unwrap();
        for _ in 2..=PER_CLIENT {
            tokens.issue(client("a"), at(3)).unwrap();
        }
        assert_eq!(find(&tokens, &first, at(4)), None);
        assert!(find(&tokens, &second, at(4)).is_some() && find(&tokens, &other, at(4)).is_some());
    }
}
