//! What can be wrong with a policy, where, and what to write instead.

use std::fmt;

/// Largest number of errors that are gathered from one file.
pub const ERRORS_MAX: usize = 100;

/// A place in the policy text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Position {
    /// Finds the place of a byte of a text.
    pub(crate) fn of(text: &str, at: usize) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline.saturating_add(1));
        Self {
            line: before.matches('\n').count().saturating_add(1),
            column: before.get(line_start..).unwrap_or_default().chars().count().saturating_add(1),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// One error of a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{position}: {problem}; {}", problem.advice())]
pub struct PolicyError {
    /// Where it is.
    pub position: Position,
    /// What it is.
    pub problem: Problem,
}

/// All errors of a policy, by place; at least one, at most [`ERRORS_MAX`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyErrors(Vec<PolicyError>);

impl PolicyErrors {
    /// Returns the errors by place.
    #[must_use]
    pub fn errors(&self) -> &[PolicyError] {
        &self.0
    }

    /// Tells whether the file only uses what the language knows and this version does not.
    #[must_use]
    pub fn is_only_unsupported(&self) -> bool {
        let mut problems = self.0.iter().map(|error| &error.problem);
        problems.all(|problem| {
            matches!(
                problem,
                Problem::UnsupportedSection { .. }
                    | Problem::UnsupportedSelector { .. }
                    | Problem::UnsupportedField { .. }
            )
        })
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message of each variant says what it means, and names its fields")]
pub enum Problem {
    #[error("the policy is {size} bytes long, {limit} are allowed")]
    TooLarge { size: usize, limit: usize },
    #[error("the rules have more than {limit} destinations")]
    TooManyDestinations { limit: usize },
    #[error("lists and objects are nested more than {limit} deep")]
    TooDeep { limit: usize },
    #[error("the policy is empty")]
    EmptyDocument,
    #[error("not HuJSON: {what}")]
    Syntax { what: String },
    #[error("a control character inside a text")]
    ControlCharacter,
    #[error("{name:?} is given twice, first on {first}")]
    DuplicateName { name: String, first: Position },
    #[error("{place} must be {wanted}, not {found}")]
    WrongKind { place: String, wanted: &'static str, found: &'static str },
    #[error("unknown field: {name:?}")]
    UnknownField { name: String, known: &'static [&'static str] },
    #[error("the section {name:?} is not supported yet")]
    UnsupportedSection { name: String },
    #[error("the field {name:?} is not supported yet")]
    UnsupportedField { name: String },
    #[error("the selector {selector:?} is not supported yet")]
    UnsupportedSelector { selector: String },
    #[error("unknown autogroup: {name:?}")]
    UnknownAutogroup { name: String },
    #[error("action must be specified")]
    MissingAction,
    #[error("action={action:?} is not supported")]
    UnsupportedAction { action: String },
    #[error("{selector:?} not valid on the {side} side of a rule")]
    WrongSide { selector: String, side: &'static str },
    #[error("autogroup:self can only be used with users, groups, or supported autogroups; {source_selector:?} is none")]
    SelfWithOtherSources { source_selector: String },
    #[error("{side}={selector:?}: tag not found: {tag:?}")]
    UndefinedTag { side: &'static str, selector: String, tag: String },
    #[error("group not defined in policy: {group:?}")]
    UndefinedGroup { group: String },
    #[error("host not defined in policy: {host:?}")]
    UndefinedHost { host: String },
    #[error("group must start with 'group:', got: {name:?}")]
    GroupName { name: String },
    #[error("tag must start with 'tag:', got: {name:?}")]
    TagPrefix { name: String },
    #[error("{name:?}: tag names must start with a letter, after 'tag:', and go on with letters, digits and hyphens")]
    TagName { name: String },
    #[error("groups[{group:?}]: {member:?}: group members cannot be recursive")]
    NestedGroup { group: String, member: String },
    #[error("username must contain @, got: {name:?}")]
    UserName { name: String },
    #[error("invalid hostname: {name:?}")]
    HostName { name: String },
    #[error("hostname contains invalid IP address: hostname {name:?} address {address:?}")]
    HostAddress { name: String, address: String },
    #[error("{owner:?} cannot own a tag")]
    TagOwner { owner: String },
    #[error("tag {tag:?} references undefined tag {owner:?}")]
    UndefinedOwnerTag { tag: String, owner: String },
    #[error("dst={text:?}: hostport must contain a colon")]
    MissingPorts { text: String },
    #[error("dst={text:?}: square brackets are only valid around IPv6 addresses")]
    Brackets { text: String },
    #[error("{context}port range {text:?}: {what}")]
    Ports { context: String, text: String, what: &'static str },
    #[error("proto name {text:?} not known")]
    Protocol { text: String },
    #[error("leading 0 not permitted in protocol number {text:?}")]
    ProtocolLeadingZero { text: String },
    #[error("protocol {protocol:?} does not support specific ports")]
    PortsWithoutPortProtocol { protocol: String },
    #[error("{domain} is not associated with this Tailnet and cannot be used in user:*@<domain> expressions")]
    ForeignDomain { domain: String },
}

impl Problem {
    /// Says what to write instead.
    #[must_use]
    pub fn advice(&self) -> String {
        match self {
            Self::TooLarge { .. } => "shorten it, with groups and tags in place of lists".to_owned(),
            Self::TooManyDestinations { .. } => "give groups of machines a tag, and name the tag".to_owned(),
            Self::TooDeep { .. } => "no section needs that depth".to_owned(),
            Self::EmptyDocument => "write {\"acls\": []} to deny everything".to_owned(),
            Self::Syntax { .. } => {
                "write JSON; only comments and trailing commas may be added, and every name and text stands in double quotes"
                    .to_owned()
            }
            Self::ControlCharacter => "write \\n, \\t or \\u00XX".to_owned(),
            Self::DuplicateName { .. } => "keep one of them, or join what they hold".to_owned(),
            Self::WrongKind { wanted, .. } => format!("write {wanted}"),
            Self::UnknownField { name, known } => match nearest(name, known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("known here: {}", known.join(", ")),
            },
            Self::UnsupportedSection { name } => {
                format!("{}; supported are acls, groups, hosts and tagOwners", without_section(name))
            }
            Self::UnsupportedField { .. } => "remove it".to_owned(),
            Self::UnsupportedSelector { .. } => {
                "write a user, group:…, tag:…, host, address, prefix, *, autogroup:member or autogroup:self".to_owned()
            }
            Self::UnknownAutogroup { .. } => "write autogroup:member or autogroup:self".to_owned(),
            Self::MissingAction | Self::UnsupportedAction { .. } => {
                "write \"action\": \"accept\"; what no rule accepts is denied".to_owned()
            }
            Self::WrongSide { .. } => "write autogroup:member as the source of a rule to autogroup:self".to_owned(),
            Self::SelfWithOtherSources { .. } => "give this source a rule of its own, with another destination".to_owned(),
            Self::UndefinedTag { tag, .. } => format!("add {tag:?} with its owners to tagOwners"),
            Self::UndefinedGroup { group } => format!("add {group:?} with its members to groups"),
            Self::UndefinedHost { host } => {
                format!("add {host:?} with its address to hosts, or write a user (with @), group:…, tag:… or an address")
            }
            Self::GroupName { name } => format!("write \"group:{name}\""),
            Self::TagPrefix { name } => format!("write \"tag:{name}\""),
            Self::TagName { .. } => "choose a name like tag:web-server".to_owned(),
            Self::NestedGroup { .. } => "list the users themselves".to_owned(),
            Self::UserName { .. } => "write the login name, like ann@example.com".to_owned(),
            Self::HostName { .. } => "choose a name without : * @ and / that is no address".to_owned(),
            Self::HostAddress { .. } => "write an address like 10.0.0.1 or a prefix like 10.0.0.0/8".to_owned(),
            Self::TagOwner { .. } => "write a user, group:…, tag:… or autogroup:member".to_owned(),
            Self::UndefinedOwnerTag { owner, .. } => format!("add {owner:?} with its owners to tagOwners"),
            Self::MissingPorts { text } => format!("write \"{text}:*\" or name the ports"),
            Self::Brackets { .. } => "write [address]:ports for IPv6 and address:ports for IPv4".to_owned(),
            Self::Ports { .. } => "write *, 443, 8000-8999, or several with commas; ports go from 1 to 65535".to_owned(),
            Self::Protocol { .. } | Self::ProtocolLeadingZero { .. } => {
                "write tcp, udp, icmp, ipv6-icmp, sctp, gre, esp, ah, igmp, or a number from 1 to 255 in quotes".to_owned()
            }
            Self::PortsWithoutPortProtocol { .. } => "write :* as the ports".to_owned(),
            Self::ForeignDomain { .. } => "name a domain of the tailnet, or a group or users".to_owned(),
        }
    }
}

/// Says how to do without a section of the language.
fn without_section(name: &str) -> &'static str {
    match name.to_ascii_lowercase().as_str() {
        "grants" => "write {\"action\": \"accept\", \"src\": [\"…\"], \"dst\": [\"…:ports\"]} in acls instead",
        "ssh" | "sshtests" => "remove it, let port 22 through in acls, and let the machine's own SSH server decide",
        "autoapprovers" => "remove it; nothing is approved without an administrator",
        "tests" => "remove it, and try the rules after setting them",
        "postures" | "defaultsrcposture" => "remove it, and name the machines by user, group or tag",
        "ipsets" => "remove it, and give the prefixes names in hosts",
        "derpmap" => "remove it; the server's configuration says which relays there are",
        _ => "remove it",
    }
}

/// Returns the known name that is one or two letters away, without regard to case.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (distance(&name.to_ascii_lowercase(), &candidate.to_ascii_lowercase()), *candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 2.min(candidate.len().div_ceil(2)))
        .map(|(_, candidate)| candidate)
}

/// Counts the letters to insert, remove or change (Levenshtein); long names are not compared.
fn distance(one: &str, two: &str) -> usize {
    if one.len() > 40 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=two.chars().count()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut diagonal = index;
        let mut left = index.saturating_add(1);
        let mut next = vec![left];
        for (other, above) in two.chars().zip(row.iter().skip(1)) {
            let changed = diagonal.saturating_add(usize::from(letter != other));
            left = changed.min(left.saturating_add(1)).min(above.saturating_add(1));
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

/// Gathers errors while a text is read.
pub(crate) struct Errors<'a> {
    text: &'a str,
    found: Vec<(usize, Problem)>,
}

impl<'a> Errors<'a> {
    pub(crate) const fn new(text: &'a str) -> Self {
        Self { text, found: Vec::new() }
    }

    /// Notes a problem at a byte offset; what exceeds [`ERRORS_MAX`] is dropped.
    pub(crate) fn note(&mut self, at: usize, problem: Problem) {
        if self.found.len() < ERRORS_MAX {
            self.found.push((at, problem));
        }
    }

    /// Notes that what begins at `at` has the same name as what begins at `first`.
    pub(crate) fn note_duplicate(&mut self, at: usize, name: &str, first: usize) {
        // Finding a position costs the length of the text: not for errors that nobody will see.
        if self.found.len() < ERRORS_MAX {
            let first = Position::of(self.text, first);
            self.note(at, Problem::DuplicateName { name: name.to_owned(), first });
        }
    }

    /// Returns `value` unless something was noted.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Result<T, PolicyErrors> {
        self.found.sort_by_key(|(at, _)| *at);
        let errors: Vec<_> = self
            .found
            .iter()
            .map(|(at, problem)| PolicyError { position: Position::of(self.text, *at), problem: problem.clone() })
            .collect();
        match value {
            Some(value) if errors.is_empty() => Ok(value),
            _ => Err(PolicyErrors(errors)),
        }
    }
}
