//! Domains that belong to a tailnet, by the logins of its users.

use std::collections::BTreeSet;

/// Domains where anybody gets a mailbox or an account, so that sharing one means nothing.
const PUBLIC: [&str; 36] = [
    "aol.com",
    "duck.com",
    "fastmail.com",
    "free.fr",
    "github",
    "gmail.com",
    "gmx.com",
    "gmx.de",
    "gmx.net",
    "googlemail.com",
    "hey.com",
    "hotmail.com",
    "icloud.com",
    "laposte.net",
    "live.com",
    "mac.com",
    "mail.com",
    "mail.ru",
    "mailbox.org",
    "me.com",
    "msn.com",
    "naver.com",
    "outlook.com",
    "passkey",
    "pm.me",
    "posteo.de",
    "proton.me",
    "protonmail.com",
    "qq.com",
    "t-online.de",
    "tutanota.com",
    "web.de",
    "yahoo.com",
    "yandex.ru",
    "ymail.com",
    "zoho.com",
];

/// Tells whether anybody gets an address at a domain, written in lower case.
pub(crate) fn is_public(domain: &str) -> bool {
    PUBLIC.binary_search(&domain).is_ok()
}

/// Returns the domains of these logins that are the tailnet's own.
pub(crate) fn of<'a>(logins: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let domains = logins.into_iter().filter_map(|login| login.rsplit_once('@')).map(|(_, domain)| domain);
    domains.filter(|domain| !is_public(domain)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_mail_domains_belong_to_nobody() {
        assert!(PUBLIC.is_sorted(), "they are searched by halves");
        let logins = ["ann@example.com", "bob@example.com", "eve@gmail.com", "dan@github", "owner@default", "odd"];
        assert_eq!(of(logins).into_iter().collect::<Vec<_>>(), ["default", "example.com"]);
    }
}
