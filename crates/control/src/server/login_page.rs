//! The pages behind a login's URL: which machine waits, who lets it in, and what became of it.
//!
//! They run no script and load nothing; who knows the URL learns what the machine said about itself.

use http::StatusCode;
use warren_wire::key::MachineKey;

use super::answers::{self, Answer};
use crate::account::Invited;
use crate::account::totp::Secret;
use crate::admin::{LoginState, LoginView};
use crate::oidc::Person;
use crate::sign_in::Outcome;

/// Longest text of a stranger that a page shows, in characters.
const LONGEST: usize = 100;

/// Longest sentence about what went wrong, in characters.
const SENTENCE: usize = 500;

/// Somebody who came back from a provider and may confirm.
pub(crate) struct Known {
    pub(crate) person: Person,
    /// Name of the provider, to show.
    pub(crate) provider: String,
    /// What only this page knows.
    pub(crate) csrf: String,
    /// Tailnets to choose from, the likeliest first; empty if a new one is made; `None` if an administrator is asked.
    pub(crate) tailnets: Option<Vec<String>>,
}

/// Shows a login. `providers` are names and titles; `accounts` says whether people have passwords here.
pub(crate) fn show(login: &LoginView, providers: &[(&str, &str)], accounts: bool, known: Option<&Known>) -> Answer {
    let rows = [
        ("Machine", login.hostname.clone()),
        ("System", login.os.clone()),
        ("Key", key_words(&login.machine_key)),
        ("Address", login.from.to_string()),
    ];
    let mut rows: String = rows.iter().map(|(name, value)| row(name, value)).collect();
    let rest = match (login.state, known, &login.person) {
        (LoginState::Approved, ..) => "<p><strong>It was let in.</strong> You can close this page.</p>".to_owned(),
        (LoginState::Rejected, ..) => "<p><strong>It was refused.</strong> You can close this page.</p>".to_owned(),
        (LoginState::Waiting, _, Some(person)) => {
            rows.push_str(&row("Person", &person.login));
            waits_for_administrator()
        }
        (LoginState::Waiting, Some(known), None) => {
            rows.push_str(&row("You", &format!("{} ({})", known.person.login, known.person.display_name)));
            rows.push_str(&row("By", &known.provider));
            question(&login.id, known)
        }
        (LoginState::Waiting, None, None) => ways(&login.id, providers, accounts),
    };
    answers::page(StatusCode::OK, frame(&format!("<h1>A machine wants to join</h1><table>{rows}</table>{rest}")))
}

/// The ways to let a machine in.
fn ways(id: &str, providers: &[(&str, &str)], accounts: bool) -> String {
    let id = text(id);
    let mut links: String = providers
        .iter()
        .map(|(name, title)| {
            let (name, title) = (text(name), text(title));
            format!("<p><a class=\"go\" href=\"/login/{id}/start?provider={name}\">Log in with {title}</a></p>")
        })
        .collect();
    if accounts {
        links.push_str(&format!("<p><a class=\"go\" href=\"/login/{id}/password\">Log in with a password</a></p>"));
    }
    let begin = if links.is_empty() {
        "If it is yours and the key is the one that the machine shows, an administrator"
    } else {
        "Without an account there, an administrator"
    };
    format!(
        "{links}<p>{begin} lets it in on the server with</p><pre>warren admin login approve {id} --user NAME</pre>\
         <p>or refuses it with</p><pre>warren admin login reject {id}</pre>"
    )
}

/// Asks whether the machine is theirs.
fn question(id: &str, known: &Known) -> String {
    let place = match known.tailnets.as_deref() {
        None => "<p>This account belongs to no network here yet, so an administrator will be asked.</p>".to_owned(),
        Some([]) => "<p>A new network is made for you.</p>".to_owned(),
        Some([only]) => format!(
            "<p>It joins the network <strong>{0}</strong>.</p><input type=\"hidden\" name=\"tailnet\" value=\"{0}\">",
            text(only)
        ),
        Some(several) => {
            let options: String = several.iter().map(|name| format!("<option>{}</option>", text(name))).collect();
            format!("<p><label>It joins the network <select name=\"tailnet\">{options}</select></label></p>")
        }
    };
    format!(
        "<p><strong>Is this your machine?</strong> Confirm only if you began this login yourself, on a machine in front \
         of you. Whoever sent you this link may want to bring in theirs.</p>\
         <form method=\"post\" action=\"/login/{}\"><input type=\"hidden\" name=\"csrf\" value=\"{}\">{place}\
         <p><button name=\"decision\" value=\"confirm\">Let it in</button> \
         <button name=\"decision\" value=\"reject\">Refuse it</button></p></form>",
        text(id),
        text(&known.csrf)
    )
}

fn waits_for_administrator() -> String {
    "<p><strong>An administrator was asked.</strong> The machine connects as soon as one lets it in; you can close this \
     page.</p>"
        .to_owned()
}

/// Asks for name, password and code. `csrf` is what only this page knows.
pub(crate) fn password(status: StatusCode, id: &str, csrf: &str, trouble: Option<&str>) -> Answer {
    let (id, csrf, trouble) = (text(id), text(csrf), trouble_of(trouble));
    let form = format!(
        "<h1>Log in</h1>{trouble}<form method=\"post\" action=\"/login/{id}/password\">\
         <input type=\"hidden\" name=\"csrf\" value=\"{csrf}\">\
         <p><label>Name<br><input name=\"name\" autocomplete=\"username\" autocapitalize=\"none\" required autofocus>\
         </label></p><p><label>Password<br><input name=\"password\" type=\"password\" \
         autocomplete=\"current-password\" required></label></p>\
         <p><label>Code that your phone shows, or a recovery code<br><input name=\"code\" \
         autocomplete=\"one-time-code\" autocapitalize=\"none\" required></label></p><p><button>Log in</button></p></form>\
         <p><a href=\"/login/{id}\">Back to the machine</a></p>"
    );
    answers::page(status, frame(&form))
}

/// Asks somebody whom a link invites for a password and the first code of their second factor.
pub(crate) fn invitation(
    status: StatusCode,
    link: &str,
    invited: &Invited,
    totp: &Secret,
    trouble: Option<&str>,
) -> Answer {
    let (login, key) = (&invited.record.login, totp.text());
    let name: String = form_urlencoded::byte_serialize(login.as_bytes()).collect();
    let uri = zeroize::Zeroizing::new(format!("otpauth://totp/warren:{name}?secret={}&issuer=warren", *key));
    let groups: Vec<_> = key.as_bytes().chunks(4).map(String::from_utf8_lossy).collect();
    let form = format!(
        "<h1>Make your account</h1>{trouble}<p>You will be <strong>{login}</strong> in the network \
         <strong>{tailnet}</strong>. This link works once.</p>\
         <form method=\"post\" action=\"/invite/{link}\"><input type=\"hidden\" name=\"key\" value=\"{key}\">\
         <input type=\"hidden\" name=\"name\" autocomplete=\"username\" value=\"{login}\">\
         <p><label>Password, 10 characters or more<br><input name=\"password\" type=\"password\" minlength=\"10\" \
         autocomplete=\"new-password\" required autofocus></label></p><p><label>The same again<br>\
         <input name=\"again\" type=\"password\" autocomplete=\"new-password\" required></label></p>\
         <p>Second factor: let a program for one-time codes on your phone scan this, \
         <a href=\"{uri}\">open it here</a>, or type the key in.</p>{code}<pre>{groups}</pre>\
         <p><label>Code that it shows now<br><input name=\"code\" inputmode=\"numeric\" \
         autocomplete=\"one-time-code\" required></label></p><p><button>Make the account</button></p></form>",
        trouble = trouble_of(trouble),
        login = text(login),
        tailnet = text(&invited.tailnet),
        link = text(link),
        key = *key,
        uri = escaped(uri.chars()),
        code = picture(&uri),
        groups = groups.join(" "),
    );
    answers::page(status, frame(&form))
}

/// Shows the codes for when the second factor is lost, this once.
pub(crate) fn account_made(invited: &Invited, codes: &[zeroize::Zeroizing<String>]) -> Answer {
    let codes: Vec<_> = codes.iter().map(|code| code.as_str()).collect();
    let rest = format!(
        "<h1>Your account is made</h1><p>You are <strong>{}</strong> in the network <strong>{}</strong>. To bring a machine \
         in, run <code>warren up</code> there, and open the link that it shows.</p>\
         <p><strong>Write these codes down</strong>: each lets you in once in place of the code of your phone, should you \
         lose it. They are not shown again.</p><pre>{}</pre>",
        text(&invited.record.login),
        text(&invited.tailnet),
        codes.join("\n")
    );
    answers::page(StatusCode::OK, frame(&rest))
}

fn trouble_of(sentence: Option<&str>) -> String {
    sentence.map(|sentence| format!("<p role=\"alert\"><strong>{}</strong></p>", text_of(sentence))).unwrap_or_default()
}

fn text_of(sentence: &str) -> String {
    escaped(sentence.chars().take(SENTENCE))
}

/// Draws a text as a QR code; nothing if it is too long for one.
fn picture(content: &str) -> String {
    let Ok(code) = fast_qr::QRBuilder::new(content).build() else { return String::new() };
    let mut path = String::new();
    for row in 0..code.size {
        for column in 0..code.size {
            let is_dark = code.data.get(row * code.size + column).is_some_and(|module| module.value());
            if is_dark {
                path.push_str(&format!("M{},{}h1v1h-1z", column + 4, row + 4));
            }
        }
    }
    let size = code.size + 8;
    format!(
        "<svg width=\"240\" height=\"240\" viewBox=\"0 0 {size} {size}\" role=\"img\" aria-label=\"QR code of the key\">\
         <path fill=\"#fff\" d=\"M0,0h{size}v{size}h-{size}z\"/><path d=\"{path}\"/></svg>"
    )
}

/// Says what became of a login that was confirmed.
pub(crate) fn done(outcome: &Outcome) -> Answer {
    let rest = match outcome {
        Outcome::In { tailnet, machine_waits: false } => format!(
            "<p><strong>The machine was let in</strong> to the network {}. You can close this page.</p>",
            text(tailnet)
        ),
        Outcome::In { tailnet, machine_waits: true } => format!(
            "<p><strong>The machine is yours</strong> in the network {}. It takes part as soon as an administrator \
             approves it.</p>",
            text(tailnet)
        ),
        Outcome::AsksAdministrator => waits_for_administrator(),
    };
    answers::page(StatusCode::OK, frame(&format!("<h1>Thank you</h1>{rest}")))
}

/// Says that a login was refused.
pub(crate) fn rejected() -> Answer {
    let rest = "<h1>Refused</h1><p>The machine was not let in. You can close this page.</p>";
    answers::page(StatusCode::OK, frame(rest))
}

/// Says that there is no such login.
pub(crate) fn gone() -> Answer {
    let rest =
        "<h1>No such login</h1><p>It is over, or never was. Run <code>warren up</code> on the machine again.</p>";
    answers::page(StatusCode::NOT_FOUND, frame(rest))
}

/// Says what went wrong, and offers to begin again where the login is known.
pub(crate) fn failed(status: StatusCode, sentence: &str, id: Option<&str>) -> Answer {
    let again = id.map(|id| format!("<p><a href=\"/login/{}\">Back to the login</a></p>", text(id)));
    let sentence = text_of(sentence);
    answers::page(status, frame(&format!("<h1>That did not work</h1><p>{sentence}</p>{}", again.unwrap_or_default())))
}

fn row(name: &str, value: &str) -> String {
    format!("<tr><th>{name}</th><td>{}</td></tr>", text(value))
}

/// Returns the first digits of a machine key in groups that a person can compare.
#[must_use]
pub fn key_words(key: &MachineKey) -> String {
    let digits: Vec<char> = key.to_hex().chars().take(16).collect();
    digits.chunks(4).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join(" ")
}

/// The style of every page; the policy of [`answers::page`] names its hash.
pub(crate) const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto;padding:0 1em}\
    th{text-align:left;padding-right:1.5em;font-weight:normal;color:#555}pre{background:#eee;padding:.7em;overflow-x:auto}\
    .go,button{font:inherit;padding:.5em 1em;border:1px solid #345;border-radius:.3em;background:#345;color:#fff;\
    text-decoration:none;cursor:pointer}button+button{background:#fff;color:#345}label input{font:inherit;padding:.4em;\
    width:100%;max-width:22em;box-sizing:border-box}";

fn frame(body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>warren</title><style>{STYLE}</style></head>\
         <body>{body}</body></html>\n"
    )
}

/// Writes a stranger's text so that it is nothing but text, and not longer than a line.
fn text(raw: &str) -> String {
    escaped(raw.chars().take(LONGEST))
}

fn escaped(raw: impl Iterator<Item = char>) -> String {
    let mut out = String::new();
    for character in raw {
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
