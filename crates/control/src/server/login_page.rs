//! The page behind a login's URL: which machine waits, and what an administrator types to let it in.
//!
//! It changes nothing and runs no script; who knows the URL learns what the machine said about itself.

use http::StatusCode;
use warren_wire::key::MachineKey;

use super::answers::{self, Answer};
use super::shared::Arrival;
use crate::Who;
use crate::admin::{LoginState, LoginView};

/// Longest text of a stranger that the page shows.
const LONGEST: usize = 100;

/// Shows the login `id`.
pub(crate) fn answer(arrival: &Arrival, id: &str) -> Answer {
    match arrival.shared.control.admin(Who::server()).login(id) {
        Ok(login) => answers::page(StatusCode::OK, page(&login)),
        Err(_) => answers::page(
            StatusCode::NOT_FOUND,
            frame(
                "<h1>No such login</h1><p>It is over, or never was. Run <code>warren up</code> on the machine again.</p>",
            ),
        ),
    }
}

fn page(login: &LoginView) -> String {
    let rows = [
        ("Machine", text(&login.hostname)),
        ("System", text(&login.os)),
        ("Key", text(&key_words(&login.machine_key))),
        ("Address", text(&login.from.to_string())),
    ];
    let rows: String = rows.iter().map(|(name, value)| format!("<tr><th>{name}</th><td>{value}</td></tr>")).collect();
    let rest = match login.state {
        LoginState::Waiting => format!(
            "<p>If it is yours and the key is the one that the machine shows, an administrator lets it in on the \
             server with</p><pre>warren admin login approve {} --user NAME</pre><p>or refuses it with</p>\
             <pre>warren admin login reject {}</pre>",
            text(&login.id),
            text(&login.id)
        ),
        LoginState::Approved => "<p><strong>It was let in.</strong> You can close this page.</p>".to_owned(),
        LoginState::Rejected => "<p><strong>It was refused.</strong> You can close this page.</p>".to_owned(),
    };
    frame(&format!("<h1>A machine wants to join</h1><table>{rows}</table>{rest}"))
}

/// Returns the first digits of a machine key in groups that a person can compare.
#[must_use]
pub fn key_words(key: &MachineKey) -> String {
    let digits: Vec<char> = key.to_hex().chars().take(16).collect();
    digits.chunks(4).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join(" ")
}

fn frame(body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>warren</title><style>\
         body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto;padding:0 1em}}\
         th{{text-align:left;padding-right:1.5em;font-weight:normal;color:#666}}\
         pre{{background:#eee;padding:.7em;overflow-x:auto}}</style></head><body>{body}</body></html>\n"
    )
}

/// Writes a stranger's text so that it is nothing but text, and not longer than a line.
fn text(raw: &str) -> String {
    let mut out = String::new();
    for character in raw.chars().take(LONGEST) {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            character if character.is_control() => out.push('\u{fffd}'),
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_stays_text() {
        assert_eq!(text("<b a=\"'\">&\n"), "&lt;b a=&quot;&#39;&quot;&gt;&amp;\u{fffd}");
        assert_eq!(text(&"x".repeat(1000)).len(), LONGEST);
    }

    #[test]
    fn a_key_is_shown_in_groups() {
        let key = MachineKey::from_bytes([0x1a; 32]);
        assert_eq!(key_words(&key), "1a1a 1a1a 1a1a 1a1a");
    }
}
