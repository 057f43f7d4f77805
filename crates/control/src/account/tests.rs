//! Second factors, passwords and links.

use std::time::Duration;

use super::totp::{base32, code, step_at, step_of};
use super::*;
use crate::admin::{AdminError, Belongings};
use crate::testing::World;

const OWNER: &str = "owner@default";

/// Takes the text of a link out of it.
fn text(url: &str) -> String {
    url.rsplit('/').next().unwrap().to_owned()
}

fn new(totp: &Secret, now: Timestamp) -> NewAccount {
    let code = code(totp, step_at(now));
    NewAccount { password: Zeroizing::new("several words at once".to_owned()), totp: totp.clone(), code }
}

fn right() -> Zeroizing<String> {
    Zeroizing::new("several words at once".to_owned())
}

/// A server with an account of its owner.
async fn with_account() -> (World, Secret, Vec<Zeroizing<String>>) {
    let world = World::new().await;
    let url = world.admin().invite_user("default", OWNER).await.unwrap().url;
    let totp = Secret::generate().unwrap();
    let now = world.control.clock().now();
    let codes = world.control.accept_invitation(&text(&url), new(&totp, now)).await.unwrap();
    (world, totp, codes)
}

/// A server whose first start failed, or whose link was lost, offers another one until somebody is in.
#[tokio::test]
async fn the_owner_is_whoever_starts_the_server_until_somebody_came_in() {
    let world = World::new().await;
    assert!(world.control.is_unused());
    let world = world.restart(Duration::from_secs(60)).await;
    assert!(world.control.is_unused());
    world.join(1, crate::admin::NewAuthKey::default()).await;
    assert!(!world.control.is_unused(), "a machine came in");
    let (world, ..) = with_account().await;
    assert!(!world.control.is_unused(), "a person did");
}

/// RFC 6238, appendix B; six of its eight digits.
#[test]
fn codes_are_those_of_the_standard() {
    let secret = Secret::from_bytes(*b"12345678901234567890");
    let vectors = [
        (59, "287082"),
        (1_111_111_109, "081804"),
        (1_111_111_111, "050471"),
        (1_234_567_890, "005924"),
        (2_000_000_000, "279037"),
        (20_000_000_000, "353130"),
    ];
    for (second, expected) in vectors {
        let now = Timestamp::from_second(second).unwrap();
        assert_eq!(code(&secret, step_at(now)), expected, "at {second}");
        assert_eq!(step_of(&secret, expected, now), Some(step_at(now)));
    }
    let now = Timestamp::from_second(1_111_111_111).unwrap();
    let present = step_at(now);
    for (off, expected) in [(-2, None), (-1, Some(present - 1)), (1, Some(present + 1)), (2, None)] {
        assert_eq!(step_of(&secret, &code(&secret, present + off), now), expected, "{off} steps off");
    }
    for wrong in ["", "05047", "0504711", "o50471", "050472", "-50471"] {
        assert_eq!(step_of(&secret, wrong, now), None, "{wrong:?}");
    }
    assert_eq!(step_of(&secret, "050 471", now), Some(present), "as some programs show it");
}

/// RFC 4648, section 10, and back.
#[test]
fn keys_are_written_and_read_in_base_32() {
    assert_eq!(base32(b"fooba"), "MZXW6YTB");
    let secret = Secret::from_bytes(*b"12345678901234567890");
    let text = secret.text();
    assert_eq!(text.as_str(), "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
    assert_eq!(Secret::from_text(&text).unwrap().expose(), secret.expose());
    for _ in 0..50 {
        let secret = Secret::generate().unwrap();
        assert_eq!(Secret::from_text(&secret.text()).unwrap().expose(), secret.expose());
    }
    for wrong in
        ["", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJ", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQA", "1EZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"]
    {
        assert!(Secret::from_text(wrong).is_none(), "{wrong}");
    }
}

#[test]
fn passwords_that_can_be_guessed_are_not_taken() {
    let check = |password: &str| password::check(password, "ann.smith.long@example.com");
    assert_eq!(check("nine char"), Err(PasswordError::Short));
    assert_eq!(check(&"ä".repeat(200)), Err(PasswordError::Long));
    for guessed in ["aaaaaaaaaaaaa", "ANN.smith.long", "ann.smith.long@example.com"] {
        assert_eq!(check(guessed), Err(PasswordError::Guessed), "{guessed}");
    }
    assert_eq!(check("correct horse battery"), Ok(()));
}

#[test]
fn what_is_kept_of_a_password_hangs_on_all_of_it_and_on_the_salt() {
    let hash = |password: &str, salt: u8| password::hash(password, &[salt; SALT_BYTES]).unwrap();
    let one = hash("several words at once", 1);
    assert_eq!(one, hash("several words at once", 1));
    assert!(one != hash("several words at once", 2) && one != hash("several words at oncE", 1));
    assert_eq!(password::hash(&"x".repeat(10_000), &[1; SALT_BYTES]), None, "nobody has one that long");
}

#[test]
fn secrets_do_not_print() {
    let secrets = Secrets {
        salt: [1; SALT_BYTES],
        password: [2; HASH_BYTES],
        totp: Secret::from_bytes([3; SECRET_BYTES]),
        step: 4,
        recovery: vec![[5; 32]],
    };
    assert_eq!(format!("{secrets:?}"), "Secrets(…)");
}

#[tokio::test]
async fn a_link_is_used_once_however_many_try() {
    let world = World::new().await;
    let url = world.admin().invite_user("default", OWNER).await.unwrap().url;
    let now = world.control.clock().now();
    let tries = (0..100).map(|_| {
        let (control, text) = (world.control.clone(), text(&url));
        tokio::spawn(async move { control.accept_invitation(&text, new(&Secret::generate().unwrap(), now)).await })
    });
    let mut made = 0;
    for tried in tries.collect::<Vec<_>>() {
        match tried.await.unwrap() {
            Ok(codes) => {
                assert_eq!(codes.len(), RECOVERY_CODES);
                made += 1;
            }
            Err(error) => assert!(matches!(error, AcceptError::Gone | AcceptError::Busy), "{error:?}"),
        }
    }
    assert_eq!(made, 1);
    assert!(world.control.invitation(&text(&url)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_code_lets_somebody_in_once_however_many_try() {
    let (world, totp, codes) = with_account().await;
    let present = step_at(world.control.clock().now());
    // The one by which the account was made is used up, too.
    let replayed = world.control.log_in(OWNER, right(), &code(&totp, present)).await;
    assert_eq!(replayed, Err(LogInError::Wrong));
    for code in [code(&totp, present + 1), codes[0].to_string()] {
        let tries = (0..100).map(|_| {
            let (control, code) = (world.control.clone(), code.clone());
            tokio::spawn(async move { control.log_in(OWNER, right(), &code).await })
        });
        let mut let_in = 0;
        for tried in tries.collect::<Vec<_>>() {
            match tried.await.unwrap() {
                Ok(person) => {
                    assert_eq!((person.identity.issuer.as_str(), person.login.as_str()), (ISSUER, OWNER));
                    let_in += 1;
                }
                Err(error) => assert!(matches!(error, LogInError::Wrong | LogInError::Busy), "{error:?}"),
            }
        }
        assert_eq!(let_in, 1);
    }
    // An earlier code, which was not used, is late by now; other codes for when it is lost are good, however they are typed.
    assert!(world.control.log_in(OWNER, right(), &code(&totp, present - 1)).await.is_err());
    let typed = codes[1].to_uppercase().replace('-', " ");
    assert!(world.control.log_in(OWNER, right(), &typed).await.is_ok());
    let world = world.restart(Duration::ZERO).await;
    assert!(world.control.log_in(OWNER, right(), &code(&totp, present + 1)).await.is_err(), "over a restart, too");
    assert!(world.control.log_in(OWNER, right(), &codes[1]).await.is_err());
    assert!(world.control.log_in(OWNER, right(), &codes[2]).await.is_ok());
}

#[tokio::test]
async fn all_three_have_to_be_right() {
    let (world, totp, codes) = with_account().await;
    let good = code(&totp, step_at(world.control.clock().now()) + 1);
    let wrong = || Zeroizing::new("several words at oncE".to_owned());
    let cases = [
        ("another password", OWNER, wrong(), good.clone()),
        ("with a code for when it is lost", OWNER, wrong(), codes[0].to_string()),
        ("no password", OWNER, Zeroizing::default(), good.clone()),
        ("a huge password", OWNER, Zeroizing::new("x".repeat(1 << 20)), good.clone()),
        ("another code", OWNER, right(), "000000".replace(&good, "000001")),
        ("no code", OWNER, right(), String::new()),
        ("nobody", "nobody@default", right(), good.clone()),
    ];
    for (what, login, password, code) in cases {
        let answer = world.control.log_in(login, password, &code).await;
        assert_eq!(answer, Err(LogInError::Wrong), "{what}");
    }
    assert!(world.control.log_in(OWNER, right(), &good).await.is_ok(), "the code was not used up by others");
}

#[tokio::test(start_paused = true)]
async fn links_end_and_the_newest_of_a_user_alone_works() {
    let world = World::new().await;
    let admin = world.admin();
    let works = async |url: &str| world.control.invitation(&text(url)).await.unwrap().is_some();
    let first = admin.invite_user("default", "ann@example.com").await.unwrap();
    assert_eq!(admin.users(None).unwrap().len(), 2, "she is a user from now on");
    assert!(first.url.starts_with("http://control.test:8080/invite/") && works(&first.url).await);
    let second = admin.invite_user("default", "ann@example.com").await.unwrap();
    assert!(!works(&first.url).await && works(&second.url).await);
    let mut bent = second.url.clone();
    let last = if bent.pop() == Some('0') { '1' } else { '0' };
    bent.push(last);
    assert!(!works(&bent).await && !works("").await && !works(&"x".repeat(10_000)).await);
    tokio::time::sleep(INVITATION_LIFETIME - Duration::from_secs(1)).await;
    assert!(works(&second.url).await);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!works(&second.url).await);
    assert!(admin.invite_user("default", "Ann").await.is_err(), "no login name");
    assert!(matches!(admin.invite_user("nothing", OWNER).await, Err(AdminError::NotFound { .. })));
}

#[tokio::test]
async fn whoever_is_locked_out_or_gone_makes_no_account_and_another_link_replaces_one() {
    let (world, totp, _) = with_account().await;
    let admin = world.admin();
    let now = world.control.clock().now();
    let accept = async |url: &str| {
        let totp = Secret::generate().unwrap();
        world.control.accept_invitation(&text(url), new(&totp, now)).await.map(|codes| (codes, totp))
    };
    let bob = admin.invite_user("default", "bob@example.com").await.unwrap().url;
    admin.suspend_user("default", "bob@example.com").await.unwrap();
    assert_eq!(accept(&bob).await.map(drop), Err(AcceptError::Gone));
    admin.restore_user("default", "bob@example.com").await.unwrap();
    admin.remove_user("default", "bob@example.com", Belongings::Remove).await.unwrap();
    assert_eq!(accept(&bob).await.map(drop), Err(AcceptError::Gone));
    // Somebody of that name comes back and gets a new account.
    for _ in 0..2 {
        let bob = admin.invite_user("default", "bob@example.com").await.unwrap().url;
        accept(&bob).await.unwrap();
        admin.remove_user("default", "bob@example.com", Belongings::Remove).await.unwrap();
    }
    // A phone and all codes are lost: the old ones work no more.
    let again = admin.invite_user("default", OWNER).await.unwrap().url;
    let (codes, _) = accept(&again).await.unwrap();
    let old = code(&totp, step_at(now) + 1);
    assert_eq!(world.control.log_in(OWNER, right(), &old).await, Err(LogInError::Wrong));
    assert!(world.control.log_in(OWNER, right(), &codes[0]).await.is_ok());
    // The same name in another network is somebody else, who has to take another one.
    admin.create_tailnet("other").await.unwrap();
    let other = admin.invite_user("other", OWNER).await.unwrap().url;
    assert_eq!(accept(&other).await.map(drop), Err(AcceptError::Taken));
}

#[tokio::test]
async fn the_log_says_who_made_an_account_and_came_in_and_no_secret() {
    let (world, totp, codes) = with_account().await;
    world.control.log_in(OWNER, right(), &codes[0]).await.unwrap();
    world.control.log_in(OWNER, right(), &code(&totp, step_at(world.control.clock().now()) + 1)).await.unwrap();
    let log = world.admin().audit(None, None, 100).await.unwrap();
    let whats: Vec<_> = log.iter().rev().map(|entry| entry.what.as_str()).collect();
    let begin = whats.iter().position(|what| *what == "user.invite").unwrap();
    assert_eq!(
        whats[begin..],
        ["user.invite", "invitation.use", "user.account", "account.create", "account.recover", "account.log-in"]
    );
    let all = format!("{log:?}");
    for secret in [totp.text().as_str(), "several words", codes[0].as_str(), &plain(&codes[0])] {
        assert!(!all.contains(secret), "{secret}");
    }
}
