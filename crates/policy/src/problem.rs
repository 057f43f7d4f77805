//! What can be wrong with a policy, where, and what to write instead.

mod advice;

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
    #[error("{context}tag not found: {tag:?}")]
    UndefinedTag { context: String, tag: String },
    #[error("group not defined in policy: {group:?}")]
    UndefinedGroup { group: String },
    #[error("host not defined in policy: {host:?}")]
    UndefinedHost { host: String },
    #[error("{what} must start with '{prefix}', got: {name:?}")]
    DefinitionName { what: &'static str, prefix: &'static str, name: String },
    #[error("{name:?} is a group of the identity provider, which says who is in it")]
    SyncedGroup { name: String },
    #[error(
        "tagOwners[{name:?}]: tag names must start with a letter, after 'tag:', and go on with letters, digits and hyphens"
    )]
    TagName { name: String },
    #[error("groups[{group:?}]: {member:?}: group members cannot be recursive")]
    NestedGroup { group: String, member: String },
    #[error("username must contain @, got: {name:?}")]
    UserName { name: String },
    #[error("invalid hostname: {name:?}")]
    HostName { name: String },
    #[error("hostname contains invalid IP address: hostname {name:?} address {address:?}")]
    HostAddress { name: String, address: String },
    #[error("invalid owner format: {owner:?} cannot own a tag")]
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
    #[error("protocol number out of range (0-255): {text:?}")]
    ProtocolRange { text: String },
    #[error("leading 0 not permitted in protocol number {text:?}")]
    ProtocolLeadingZero { text: String },
    #[error("protocol {protocol:?} does not support specific ports")]
    PortsWithoutPortProtocol { protocol: String },
    #[error("autogroup:member and its alias autogroup:members are both used")]
    BothMemberSpellings,
    #[error("invalid alias format: {text:?}")]
    SelectorForm { text: String },
    #[error("invalid user: {text:?}")]
    UserPattern { text: String },
    #[error("{text:?}: invalid address")]
    Address { text: String },
    #[error("{kind} not supported for {place}: {selector:?}")]
    Misplaced { kind: &'static str, place: &'static str, selector: String, allowed: &'static str },
    #[error("autogroup:internet can only be used in ACL destinations")]
    InternetAsSource,
    #[error("cannot use autogroup:danger-all as a dst")]
    EverywhereAsDestination,
    #[error("ipset not defined in policy: {name:?}")]
    UndefinedIpSet { name: String },
    #[error("posture not defined in policy: {name:?}")]
    UndefinedPosture { name: String },
    #[error("ip and app can not both be empty")]
    EmptyGrant,
    #[error("{text:?}: expected only one colon in Internet protocol and port type")]
    GrantColons { text: String },
    #[error("via can only be a tag, not {text:?}")]
    ViaNoTag { text: String },
    #[error("tag {tag:?} not found")]
    UndefinedViaTag { tag: String },
    #[error("cannot use app grants with autogroup:internet")]
    AppToInternet,
    #[error("dst {text:?}: to allow all IP addresses, use \"*\" or \"autogroup:internet\"")]
    DefaultRoute { text: String },
    #[error("{name:?}: capability name must have the form {{domain}}/{{path}}")]
    CapabilityForm { name: String },
    #[error("{name:?}: capability name must not be in the tailscale.com domain")]
    CapabilityDomain { name: String },
    #[error("not JSON: {what}")]
    Value { what: String },
    #[error("action must be specified")]
    MissingSshAction,
    #[error("{action:?} is not a valid action")]
    SshAction { action: String },
    #[error("users must be specified")]
    MissingSshUsers,
    #[error("user {user:?} is not valid")]
    SshUser { user: String },
    #[error("acceptEnv values cannot be empty")]
    EmptyAcceptEnv,
    #[error("invalid dst {text:?}")]
    SshDestination { text: String },
    #[error("wildcard (*) is not supported as SSH destination")]
    SshDestinationAny,
    #[error("user destination requires source to contain only that same user {user:?}")]
    SshUserDestination { user: String },
    #[error(
        "autogroup:self destination requires source to contain only users or groups, not tags or autogroup:tagged, like {source_selector:?}"
    )]
    SshSelfSources { source_selector: String },
    #[error("tags in SSH source cannot access user-owned devices, those of {user:?}")]
    SshTaggedToUser { user: String },
    #[error("tags in SSH source cannot access autogroup:member (user-owned devices)")]
    SshTaggedToMember,
    #[error("{source_selector:?} cannot be checked: there is no person behind tagged devices")]
    SshTaggedCheck { source_selector: String },
    #[error("checkPeriod {period} {what}")]
    CheckPeriod { period: String, what: &'static str },
    #[error("time: invalid duration {text:?}")]
    Duration { text: String },
    #[error("checkPeriod is only valid with action \"check\"")]
    CheckPeriodWithoutCheck,
    #[error("IPPool({pool}): nodeAttrs ipPool must be within 100.64.0.0/10")]
    PoolRange { pool: String },
    #[error("IPPool({pool}): network within reserved range")]
    PoolReserved { pool: String },
    #[error("attr values cannot be empty")]
    EmptyAttribute,
    #[error("invalid auto approver format: {text:?}")]
    Approver { text: String },
    #[error("invalid prefix: {text:?}")]
    RoutePrefix { text: String },
    #[error("invalid service: {text:?}")]
    ServiceName { text: String },
    #[error("invalid assertion {text:?}: {what}")]
    Assertion { text: String, what: &'static str },
    #[error("unknown attribute: {name:?}")]
    UnknownAttribute { name: String },
    #[error("{name:?} is empty")]
    EmptyDefinition { name: String },
    #[error("{text:?} is no operation of an ipset")]
    IpSetOperation { text: String },
    #[error("{text:?} does not say whether to add or to remove it, in an ipset that removes something")]
    IpSetBare { text: String },
    #[error("{name:?} contains itself, through {through:?}")]
    IpSetCycle { name: String, through: String },
    #[error("the ipsets have more than {limit} ranges of addresses")]
    TooManyRanges { limit: usize },
    #[error("invalid region {text:?}")]
    Region { text: String },
    #[error("region {text:?} has no relays")]
    RegionNodes { text: String },
    #[error("{place} must not be {text:?}")]
    Choice { place: &'static str, text: String, allowed: &'static str },
    #[error("{text:?} is not a moment")]
    Moment { text: String },
    #[error("until is not after from, so that the rule never holds")]
    EndBeforeBegin,
    #[error("{text:?} is not a time of the day")]
    Clock { text: String },
    #[error("{text:?} is not a day of the week")]
    Days { text: String },
    #[error("{text:?} is not a time zone")]
    Zone { text: String },
    #[error("the attribute {name:?} of a test cannot be {found}")]
    TestAttribute { name: String, found: &'static str },
    #[error("{section}{domain} is not associated with this Tailnet and cannot be used in user:*@<domain> expressions")]
    ForeignDomain { section: &'static str, domain: String },
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
