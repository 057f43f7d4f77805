//! Bringing a policy into one form: `warren policy fmt`.
//!
//! Order, comments and blank lines stay. What stood on one line stays there if it fits; whatever held a line break or a
//! comment gets a line for each entry. A comment between a name and its value moves above both.

use crate::Policy;
use crate::hujson;
use crate::problem::{Errors, PolicyErrors};

/// Longest line that holds a whole list or object, in characters.
const WIDTH: usize = 120;
const INDENT: &str = "  ";

impl Policy {
    /// Formats the text of a policy. Only its form as HuJSON matters: what it says need not be valid.
    ///
    /// # Errors
    /// What is wrong with a text that is no HuJSON.
    pub fn format(text: &str) -> Result<String, PolicyErrors> {
        let mut errors = Errors::new(text);
        if hujson::read(text, &mut errors).is_none() {
            errors.finish(None::<()>)?;
        }
        let mut parser = Parser { tokens: tokens(text), at: 0 };
        let mut out = String::with_capacity(text.len());
        parser.group("", "").write_lines(0, &mut out);
        Ok(out)
    }

    /// Writes the text of a policy as JSON, without comments. What it says need not be valid.
    ///
    /// # Errors
    /// What is wrong with a text that is no HuJSON.
    pub fn to_json(text: &str) -> Result<String, PolicyErrors> {
        let mut errors = Errors::new(text);
        let read = hujson::read(text, &mut errors);
        let value = errors.finish(read)?;
        let mut out = String::with_capacity(text.len());
        value.write(&mut out);
        Ok(out)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Open,
    Close,
    Comma,
    Colon,
    /// A text, number or word.
    Leaf,
    LineComment,
    BlockComment,
}

#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    sort: Sort,
    text: &'a str,
    /// Line breaks since the token before.
    breaks: usize,
}

/// Takes valid HuJSON apart.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut breaks = 0_usize;
    while let Some(first) = rest.chars().next() {
        let (sort, length) = match first {
            '\r' if rest.starts_with("\r\n") => (None, 1),
            '\n' | '\r' => {
                breaks = breaks.saturating_add(1);
                (None, 1)
            }
            _ if first.is_whitespace() || first == '\u{feff}' => (None, first.len_utf8()),
            '{' | '[' => (Some(Sort::Open), 1),
            '}' | ']' => (Some(Sort::Close), 1),
            ',' => (Some(Sort::Comma), 1),
            ':' => (Some(Sort::Colon), 1),
            '"' => (Some(Sort::Leaf), text_length(rest)),
            '/' if rest.starts_with("//") => (Some(Sort::LineComment), rest.find(['\n', '\r']).unwrap_or(rest.len())),
            '/' => {
                let end = rest.get(2..).and_then(|inside| inside.find("*/")).map(|end| end.saturating_add(4));
                (Some(Sort::BlockComment), end.unwrap_or(rest.len()))
            }
            _ => {
                let ends =
                    |sign: char| sign.is_whitespace() || matches!(sign, '{' | '}' | '[' | ']' | ',' | ':' | '"' | '/');
                (Some(Sort::Leaf), rest.find(ends).unwrap_or(rest.len()))
            }
        };
        let (token, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        rest = after;
        if let Some(sort) = sort {
            tokens.push(Token { sort, text: token.trim_end(), breaks });
            breaks = 0;
        }
    }
    tokens
}

/// Returns the length of the text in quotes that `rest` begins with.
fn text_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at.saturating_add(1),
            _ => {}
        }
    }
    rest.len()
}

/// A list, an object, or the whole file, which is like a list of one value without brackets.
#[derive(Debug)]
struct Group<'a> {
    open: &'a str,
    close: &'a str,
    entries: Vec<Entry<'a>>,
    /// Comments after the last entry.
    rest: Vec<Comment<'a>>,
    /// Whether each entry gets a line.
    spread: bool,
}

#[derive(Debug)]
struct Entry<'a> {
    /// Comments on lines before it.
    before: Vec<Comment<'a>>,
    /// Whether a blank line stands before the entry itself.
    apart: bool,
    name: Option<&'a str>,
    value: Value<'a>,
    /// Comments on the line on which it ends.
    after: Vec<Comment<'a>>,
}

#[derive(Debug)]
enum Value<'a> {
    Leaf(&'a str),
    Group(Group<'a>),
}

#[derive(Debug, Clone, Copy)]
struct Comment<'a> {
    text: &'a str,
    sort: Sort,
    /// Whether a blank line stands before it.
    apart: bool,
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        let token = self.tokens.get(self.at).copied();
        self.at = self.at.saturating_add(1);
        token
    }

    /// Tells whether what comes next is a name or a value on the same line.
    fn entry_follows(&self) -> bool {
        let next = self.tokens.get(self.at);
        next.is_some_and(|next| next.breaks == 0 && matches!(next.sort, Sort::Leaf | Sort::Open))
    }

    /// Reads a group whose opening bracket was taken. Nesting was limited before.
    fn group(&mut self, open: &'a str, close: &'a str) -> Group<'a> {
        let mut group = Group { open, close, entries: Vec::new(), rest: Vec::new(), spread: open.is_empty() };
        while let Some(token) = self.next() {
            group.spread |= token.breaks > 0;
            match token.sort {
                Sort::Close => break,
                Sort::Comma | Sort::Colon => {}
                Sort::LineComment | Sort::BlockComment => {
                    group.spread = true;
                    let comment = Comment { text: token.text, sort: token.sort, apart: token.breaks > 1 };
                    let same_line = token.breaks == 0 && group.rest.is_empty() && !self.entry_follows();
                    match group.entries.last_mut().filter(|_| same_line) {
                        Some(entry) if entry.after.last().is_none_or(|last| last.sort == Sort::BlockComment) => {
                            entry.after.push(comment);
                        }
                        _ => group.rest.push(comment),
                    }
                }
                Sort::Leaf | Sort::Open => {
                    let before = std::mem::take(&mut group.rest);
                    let entry = self.entry(token, before, open == "{");
                    group.spread |= matches!(&entry.value, Value::Group(inner) if inner.spread);
                    group.spread |= !entry.before.is_empty();
                    group.entries.push(entry);
                }
            }
        }
        // An empty list is written without a break, whatever stood between its brackets.
        group.spread &= !(group.entries.is_empty() && group.rest.is_empty());
        group
    }

    fn entry(&mut self, first: Token<'a>, mut before: Vec<Comment<'a>>, named: bool) -> Entry<'a> {
        let apart = first.breaks > 1;
        let mut value = first;
        if named {
            // Whatever stands between name and value is a colon or a comment.
            while let Some(token) = self.next() {
                match token.sort {
                    Sort::LineComment | Sort::BlockComment => {
                        before.push(Comment { text: token.text, sort: token.sort, apart: false });
                    }
                    Sort::Colon | Sort::Comma | Sort::Close => {}
                    Sort::Leaf | Sort::Open => {
                        value = token;
                        break;
                    }
                }
            }
        }
        let name = named.then_some(first.text);
        let value = match (value.sort, value.text) {
            (Sort::Open, "{") => Value::Group(self.group("{", "}")),
            (Sort::Open, _) => Value::Group(self.group("[", "]")),
            (_, text) => Value::Leaf(text),
        };
        Entry { before, apart, name, value, after: Vec::new() }
    }
}

impl Group<'_> {
    /// Writes the group in lines of this depth, or what the file holds.
    fn write_lines(&self, depth: usize, out: &mut String) {
        let whole_file = self.open.is_empty();
        let inner = if whole_file { depth } else { depth.saturating_add(1) };
        if !whole_file {
            out.push_str(self.open);
            out.push('\n');
        }
        let mut first = true;
        let mut begin = |apart: bool, out: &mut String| {
            out.push_str(if apart && !first { "\n" } else { "" });
            out.push_str(&INDENT.repeat(inner));
            first = false;
        };
        for entry in &self.entries {
            for comment in &entry.before {
                begin(comment.apart, out);
                out.push_str(comment.text);
                out.push('\n');
            }
            begin(entry.apart, out);
            entry.write(inner, out);
            out.push_str(if whole_file { "" } else { "," });
            for comment in &entry.after {
                out.push(' ');
                out.push_str(comment.text);
            }
            out.push('\n');
        }
        for comment in &self.rest {
            begin(comment.apart, out);
            out.push_str(comment.text);
            out.push('\n');
        }
        if !whole_file {
            out.push_str(&INDENT.repeat(depth));
            out.push_str(self.close);
        }
    }

    /// Writes the group on one line; there is no comment in it.
    fn write_line(&self, out: &mut String) {
        out.push_str(self.open);
        for (number, entry) in self.entries.iter().enumerate() {
            out.push_str(if number > 0 { ", " } else { "" });
            if let Some(name) = entry.name {
                out.push_str(name);
                out.push_str(": ");
            }
            match &entry.value {
                Value::Leaf(text) => out.push_str(text),
                Value::Group(group) => group.write_line(out),
            }
        }
        out.push_str(self.close);
    }
}

impl Entry<'_> {
    fn write(&self, depth: usize, out: &mut String) {
        if let Some(name) = self.name {
            out.push_str(name);
            out.push_str(": ");
        }
        let group = match &self.value {
            Value::Leaf(text) => return out.push_str(text),
            Value::Group(group) => group,
        };
        if group.spread {
            return group.write_lines(depth, out);
        }
        let start = out.len();
        group.write_line(out);
        let name = self.name.map_or(0, |name| name.chars().count().saturating_add(2));
        let line = out.get(start..).unwrap_or_default().chars().count();
        // With the comma after it.
        let length = INDENT.len().saturating_mul(depth).saturating_add(name).saturating_add(line).saturating_add(1);
        if length > WIDTH && !group.entries.is_empty() {
            out.truncate(start);
            group.write_lines(depth, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DEFAULT_POLICY, POLICY_MAX_DEPTH};
    use proptest::prelude::*;

    #[test]
    fn everything_stays_but_the_form() {
        let text = "// Head.\r\n\r\n\r\n{ // Rules.\r\n\"acls\" : [ {\"action\":\"accept\"} /* all */ ,\r\n\r\n// Next.\r\n\
                    [1,2 ,], ], \"a\": /* why */ {\n} ,\"b\":[ ]} // End.\n// Last.";
        let wanted = "// Head.\n\n{\n  // Rules.\n  \"acls\": [\n    {\"action\": \"accept\"}, /* all */\n\n    \
                      // Next.\n    [1, 2],\n  ],\n  /* why */\n  \"a\": {},\n  \"b\": [],\n} // End.\n// Last.\n";
        assert_eq!(Policy::format(text).unwrap(), wanted);
    }

    #[test]
    fn the_default_policy_has_the_form() {
        assert_eq!(Policy::format(DEFAULT_POLICY).unwrap(), DEFAULT_POLICY);
    }

    #[test]
    fn long_lines_are_broken_at_the_outermost_list() {
        let text = format!("{{\"a\": [[{}], [2]]}}", vec!["1"; 36].join(", "));
        let inner = vec!["1"; 36].join(", ");
        assert_eq!(Policy::format(&text).unwrap(), format!("{{\n  \"a\": [\n    [{inner}],\n    [2],\n  ],\n}}\n"));
    }

    #[test]
    fn what_is_no_hujson_is_refused_with_its_place() {
        let errors = Policy::format("{\n  x}").unwrap_err();
        assert_eq!(errors.errors()[0].position.line, 2);
        assert!(Policy::format(&"[".repeat(POLICY_MAX_DEPTH + 1)).is_err());
    }

    /// A value with anything that may stand between tokens.
    fn loose() -> impl Strategy<Value = String> {
        let gap = || {
            let parts =
                vec!["", " ", "\n", "\n\n\n", "\r\n", "\t", "// c\n", "//\n", "/* d */", "/* e\n f */", "// é\r"];
            proptest::collection::vec(proptest::sample::select(parts), 0..3).prop_map(|parts| parts.concat())
        };
        let leaf = proptest::sample::select(vec![
            "1",
            "-2.5e3",
            "null",
            "true",
            "\"a\"",
            "\"// no\"",
            "\"\\\"é\"",
            "[]",
            "{}",
        ]);
        let value = leaf.prop_map(str::to_owned).prop_recursive(4, 40, 5, move |inner| {
            let comma = prop_oneof![Just(""), Just(",")];
            let entries = proptest::collection::vec((gap(), gap(), gap(), gap(), inner), 0..5);
            (any::<bool>(), entries, comma, gap()).prop_map(|(object, entries, comma, last)| {
                let count = entries.len();
                let mut text = String::from(if object { "{" } else { "[" });
                for (number, (before, one, two, after, value)) in entries.into_iter().enumerate() {
                    text += &before;
                    if object {
                        text += &format!("\"n{number}\"{one}:{two}");
                    }
                    text += &value;
                    text += &after;
                    text += if number + 1 < count { "," } else { comma };
                }
                text += &last;
                text += if object { "}" } else { "]" };
                text
            })
        });
        (gap(), value, gap()).prop_map(|(before, value, after)| format!("{before}{value}{after}"))
    }

    fn comments(text: &str) -> Vec<String> {
        let tokens = tokens(text).into_iter();
        let comments = tokens.filter(|token| matches!(token.sort, Sort::LineComment | Sort::BlockComment));
        let mut comments: Vec<String> = comments.map(|token| token.text.to_owned()).collect();
        comments.sort();
        comments
    }

    fn plain(text: &str) -> String {
        let mut errors = Errors::new(text);
        let mut out = String::new();
        hujson::read(text, &mut errors).unwrap().write(&mut out);
        out
    }

    proptest! {
        #[test]
        fn formatting_keeps_values_and_comments_and_is_done_once(text in loose()) {
            let once = Policy::format(&text).unwrap();
            prop_assert_eq!(plain(&once), plain(&text), "{}", once);
            prop_assert_eq!(comments(&once), comments(&text), "{}", once);
            prop_assert_eq!(Policy::format(&once).unwrap(), once);
        }

        #[test]
        fn no_text_panics(text in "(\\[|\\]|\\{|\\}|,|:|\"|//|/\\*|\\*/|a|1|\n|\r| |é|\u{feff}){0,20}") {
            let _ = Policy::format(&text);
        }
    }
}
