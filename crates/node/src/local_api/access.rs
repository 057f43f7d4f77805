//! Who may do what over the local socket: one table.

use http::Method;

/// Says who may use a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Every local user.
    Read,
    /// The operator named in the settings, and whoever satisfies [`Self::Root`].
    Own,
    /// User id 0, or the user that the daemon runs as.
    Root,
}

/// Names everything that the local API can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is one row of the table below")]
pub enum Verb {
    Status,
    WhoIs,
    Prefs,
    EditPrefs,
    Start,
    LoginInteractive,
    Logout,
    ResetAuth,
    Ping,
    Netcheck,
    DerpMap,
    WatchBus,
    Dial,
    Shutdown,
}

/// Is one row of the table.
#[derive(Debug, Clone)]
pub struct Rule {
    /// What it is.
    pub verb: Verb,
    /// HTTP method.
    pub method: Method,
    /// Path below `/localapi/v0/`.
    pub path: &'static str,
    /// Who may.
    pub need: Need,
}

/// Is the table of all verbs. What is not in it does not exist, whoever asks.
pub const RULES: &[Rule] = &[
    rule(Verb::Status, Method::GET, "status", Need::Read),
    rule(Verb::WhoIs, Method::GET, "whois", Need::Read),
    rule(Verb::Prefs, Method::GET, "prefs", Need::Read),
    rule(Verb::DerpMap, Method::GET, "derpmap", Need::Read),
    rule(Verb::Netcheck, Method::GET, "netcheck", Need::Read),
    rule(Verb::WatchBus, Method::GET, "watch-ipn-bus", Need::Read),
    rule(Verb::Ping, Method::POST, "ping", Need::Read),
    // Settings that decide whom the machine trusts need `Root`; `Prefs::patch` says which.
    rule(Verb::EditPrefs, Method::PATCH, "prefs", Need::Own),
    rule(Verb::Start, Method::POST, "start", Need::Own),
    rule(Verb::LoginInteractive, Method::POST, "login-interactive", Need::Own),
    rule(Verb::Logout, Method::POST, "logout", Need::Own),
    // Without a TUN device this is the way to speak as this machine.
    rule(Verb::Dial, Method::POST, "dial", Need::Own),
    rule(Verb::ResetAuth, Method::POST, "reset-auth", Need::Root),
    rule(Verb::Shutdown, Method::POST, "shutdown", Need::Root),
];

const fn rule(verb: Verb, method: Method, path: &'static str, need: Need) -> Rule {
    Rule { verb, method, path, need }
}

/// Is who the kernel says is calling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User id of the process that connected.
    pub uid: u32,
    /// User id of the daemon.
    pub daemon_uid: u32,
    /// User id of the operator, if one is named and exists.
    pub operator_uid: Option<u32>,
}

impl Caller {
    /// Tells whether the caller may use a verb that needs `need`.
    #[must_use]
    pub fn may(&self, need: Need) -> bool {
        let root = self.uid == 0 || self.uid == self.daemon_uid;
        match need {
            Need::Read => true,
            Need::Own => root || self.operator_uid == Some(self.uid),
            Need::Root => root,
        }
    }
}

/// Says why a request goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// No such path.
    NotFound,
    /// The path exists with another method.
    WrongMethod,
    /// The caller may not.
    Forbidden,
}

/// Finds the verb of a request and checks the caller's right to it.
///
/// # Errors
/// Says why not.
pub fn authorise(method: &Method, path: &str, caller: &Caller) -> Result<Verb, Denied> {
    let mut denied = Denied::NotFound;
    for rule in RULES.iter().filter(|rule| rule.path == path) {
        if rule.method == *method {
            return if caller.may(rule.need) { Ok(rule.verb) } else { Err(Denied::Forbidden) };
        }
        denied = Denied::WrongMethod;
    }
    Err(denied)
}

/// The file that names the users of this machine.
pub(super) const PASSWD: &str = "/etc/passwd";

/// Returns the user id of `name` according to a password file's text; a number that is nobody's name means itself.
#[must_use]
pub fn uid_of(name: &str, passwd: &str) -> Option<u32> {
    if name.is_empty() {
        return None;
    }
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    // The highest number means "nobody" to the kernel.
    let number = || name.parse().ok().filter(|_| name.bytes().all(|byte| byte.is_ascii_digit()));
    named.or_else(number).filter(|uid| *uid != u32::MAX)
}

/// Returns the user id of a user of this machine.
///
/// # Errors
/// Says that there is no such user, and what to do.
pub fn local_user(name: &str) -> Result<u32, String> {
    let passwd = std::fs::read_to_string(PASSWD).unwrap_or_default();
    uid_of(name, &passwd)
        .ok_or_else(|| format!("this machine has no user {name} in {PASSWD}; give the user's number instead"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: u32 = 1001;
    const OPERATOR: u32 = 1000;

    fn caller(uid: u32) -> Caller {
        Caller { uid, daemon_uid: 0, operator_uid: Some(OPERATOR) }
    }

    /// The expectation is written out a second time on purpose: a verb whose right changes, or a new verb without a
    /// line here, fails.
    #[test]
    fn every_verb_is_open_to_exactly_those_it_should_be() {
        let expected = |verb| match verb {
            Verb::Status | Verb::WhoIs | Verb::Prefs | Verb::DerpMap | Verb::Netcheck | Verb::WatchBus | Verb::Ping => {
                (true, true)
            }
            Verb::EditPrefs | Verb::Start | Verb::LoginInteractive | Verb::Logout | Verb::Dial => (false, true),
            Verb::ResetAuth | Verb::Shutdown => (false, false),
        };
        for rule in RULES {
            let (stranger, operator) = expected(rule.verb);
            for (uid, allowed) in [(STRANGER, stranger), (OPERATOR, operator), (0, true)] {
                let answer = authorise(&rule.method, rule.path, &caller(uid));
                let wanted = if allowed { Ok(rule.verb) } else { Err(Denied::Forbidden) };
                assert_eq!(answer, wanted, "{:?} as {uid}", rule.verb);
            }
        }
    }

    #[test]
    fn verbs_are_named_once() {
        for (index, rule) in RULES.iter().enumerate() {
            let same =
                |other: &Rule| other.verb == rule.verb || (other.path == rule.path && other.method == rule.method);
            assert!(!RULES[..index].iter().any(same), "{:?}", rule.verb);
        }
    }

    #[test]
    fn without_operator_nobody_but_root_writes() {
        let nobody = Caller { uid: 1000, daemon_uid: 0, operator_uid: None };
        assert!(!nobody.may(Need::Own));
        let own_daemon = Caller { uid: 1000, daemon_uid: 1000, operator_uid: None };
        assert!(own_daemon.may(Need::Root));
    }

    #[test]
    fn unknown_paths_and_methods_are_told_apart() {
        let root = caller(0);
        assert_eq!(authorise(&Method::GET, "nothing", &root), Err(Denied::NotFound));
        assert_eq!(authorise(&Method::GET, "status/", &root), Err(Denied::NotFound));
        assert_eq!(authorise(&Method::DELETE, "prefs", &root), Err(Denied::WrongMethod));
    }

    #[test]
    fn operator_names_are_matched_whole() {
        let passwd = "root:x:0:0::/root:/bin/sh\nal:x:1001:1::/:\nalice:x:1000:1000::/home/alice:/bin/sh\nbad:x:y:\n";
        assert_eq!(uid_of("alice", passwd), Some(1000));
        assert_eq!(uid_of("ali", passwd), None);
        assert_eq!(uid_of("bad", passwd), None);
        assert_eq!(uid_of("", passwd), None);
    }

    #[test]
    fn a_number_is_a_user_unless_it_is_somebodys_name() {
        let passwd = "1000:x:7:7::/:/bin/sh\n";
        assert_eq!(uid_of("1000", passwd), Some(7));
        assert_eq!(uid_of("1001", passwd), Some(1001));
        for nobody in ["4294967295", "4294967296", "-1", "+1", "0x1"] {
            assert_eq!(uid_of(nobody, passwd), None, "{nobody}");
        }
    }
}
