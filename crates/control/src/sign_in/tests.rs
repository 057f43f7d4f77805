//! Who gets in where, and who does not.

use super::*;
use crate::admin::{AdminError, Belongings, NewAuthKey, UserView};
use crate::model::UserIdentity;
use crate::testing::*;
use warren_wire::control::{RegisterRequest, RegisterResponse};

const ISSUER: &str = "https://login.example.com";

/// Ann, whom the configuration sends to the tailnet "default".
fn ann() -> Person {
    person("1", "ann@example.com", Some("default"))
}

fn person(subject: &str, login: &str, tailnet: Option<&str>) -> Person {
    Person {
        identity: UserIdentity { issuer: ISSUER.to_owned(), subject: subject.to_owned() },
        login: login.to_owned(),
        display_name: "Somebody".to_owned(),
        tailnet: tailnet.map(str::to_owned),
        may_make_tailnet: false,
    }
}

impl World {
    /// Begins a login of the machine `machine` for the node key `node`.
    async fn begin(&self, machine: u8, request: RegisterRequest) -> (String, RegisterResponse) {
        let answer = self.register(machine, request).await;
        let id = self.control.login_id(&answer.auth_url).unwrap_or_else(|| panic!("{answer:?}")).to_owned();
        (id, answer)
    }

    /// Lets the machine and node `number` in as a node of that person.
    async fn signed_in(&self, number: u8, person: &Person) -> Outcome {
        let (id, _) = self.begin(number, register(number)).await;
        self.control.sign_in(&id, person, None).await.unwrap()
    }

    fn users(&self) -> Vec<UserView> {
        self.admin().users(Some("default")).unwrap()
    }

    fn owner(&self, number: u8) -> String {
        self.admin().node(None, &self.id(number).to_string()).unwrap().user.unwrap()
    }
}

fn is_in(tailnet: &str) -> Outcome {
    Outcome::In { tailnet: tailnet.to_owned(), machine_waits: false }
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_login_makes_the_user_and_the_waiting_call_returns() {
    let world = World::new().await;
    let (id, answer) = world.begin(1, register(1)).await;
    let wait = world.register(1, RegisterRequest { followup: answer.auth_url, ..register(1) });
    let ann = ann();
    let (answer, outcome) = tokio::join!(wait, world.control.sign_in(&id, &ann, None));
    assert_eq!(outcome, Ok(is_in("default")));
    assert!(answer.machine_authorized && answer.error.is_empty(), "{answer:?}");
    assert_eq!((answer.login.login_name.as_str(), answer.login.display_name.as_str()), ("ann@example.com", "Somebody"));
    let again = world.control.sign_in(&id, &ann, None).await;
    assert_eq!(again, Err(SignInError::Gone), "a login is decided once");
    let user = world.users().pop().unwrap();
    assert_eq!((user.login.as_str(), user.role.as_str()), ("ann@example.com", "member"));
    let log = world.admin().audit(None, None, 10).await.unwrap();
    let told: Vec<_> = log.iter().take(2).map(|entry| (entry.who.as_str(), entry.what.as_str())).collect();
    assert_eq!(told, [("user:ann@example.com", "node.create"), ("user:ann@example.com", "user.create")]);
    assert!(log[1].after.as_ref().unwrap().contains(ISSUER));
    // The same person, whatever they are called now; the login name stays.
    let mut renamed = person("1", "ann.new@example.com", Some("default"));
    renamed.display_name = "Ann".to_owned();
    assert_eq!(world.signed_in(2, &renamed).await, is_in("default"));
    assert_eq!(world.owner(2), "ann@example.com");
    let user = world.users().pop().unwrap();
    assert_eq!((user.display_name.as_str(), user.nodes), ("Ann", 2));
    let world = world.restart(std::time::Duration::ZERO).await;
    assert_eq!(world.signed_in(3, &ann).await, is_in("default"));
    assert_eq!((world.owner(3).as_str(), world.users().len()), ("ann@example.com", 2), "known after a restart");
}

#[tokio::test(start_paused = true)]
async fn nobody_becomes_a_user_by_an_address() {
    let world = World::new().await;
    world.admin().create_user("default", "bob@example.com", None).await.unwrap();
    assert_eq!(world.signed_in(1, &ann()).await, is_in("default"));
    // Another issuer, and another account of the same issuer, with Ann's address; and Bob's, whom nobody linked.
    let mut elsewhere = ann();
    elsewhere.identity.issuer = "https://evil.example".to_owned();
    for other in
        [elsewhere, person("2", "ann@example.com", Some("default")), person("3", "bob@example.com", Some("default"))]
    {
        let (id, _) = world.begin(2, register(2)).await;
        let refused = world.control.sign_in(&id, &other, None).await;
        assert!(matches!(refused, Err(SignInError::Refused(Refusal::LoginTaken { .. }))), "{refused:?}");
        assert!(world.control.registered(&node_key(2)).is_none());
    }
    assert_eq!(world.users().len(), 3, "no user was made");
}

#[tokio::test(start_paused = true)]
async fn a_login_never_moves_a_node_to_another_owner() {
    let world = World::new().await;
    let bob = person("2", "bob@example.com", Some("default"));
    assert_eq!(world.signed_in(1, &ann()).await, is_in("default"));
    let node = world.id(1);
    // Bob logs in on Ann's machine, with a new key that says it follows hers: he gets a node of his own.
    let (id, _) = world.begin(1, RegisterRequest { old_node_key: Some(node_key(1)), ..register(2) }).await;
    assert_eq!(world.control.sign_in(&id, &bob, None).await, Ok(is_in("default")));
    assert_ne!(world.id(2), node);
    assert_eq!((world.owner(1).as_str(), world.owner(2).as_str()), ("ann@example.com", "bob@example.com"));
    // Ann's key expires, and Bob confirms the login that the client asks for with the very same key.
    world.admin().expire_node(None, &node.to_string(), crate::admin::Expiry::Now).await.unwrap();
    let (id, _) = world.begin(1, RegisterRequest { old_node_key: Some(node_key(1)), ..register(3) }).await;
    let moved = RegisterRequest { node_key: node_key(1), ..register(1) };
    assert!(world.register(1, moved).await.node_key_expired);
    assert_eq!(world.control.sign_in(&id, &bob, None).await, Ok(is_in("default")));
    assert_eq!(world.owner(1), "ann@example.com");
    // Ann herself gets her node back, under its number.
    let (id, _) = world.begin(1, RegisterRequest { old_node_key: Some(node_key(1)), ..register(4) }).await;
    assert_eq!(world.control.sign_in(&id, &ann(), None).await, Ok(is_in("default")));
    assert_eq!(world.id(4), node);
    // A tagged node stays tagged.
    let key = world.auth_key(NewAuthKey { tags: vec!["tag:web".to_owned()], ..NewAuthKey::default() }).await;
    assert!(world.register(9, with_key(register(9), &key)).await.machine_authorized);
    let tagged = world.id(9);
    let (id, _) = world.begin(9, RegisterRequest { old_node_key: Some(node_key(9)), ..register(10) }).await;
    assert_eq!(world.control.sign_in(&id, &bob, None).await, Ok(is_in("default")));
    assert_ne!(world.id(10), tagged);
    assert_eq!(world.admin().node(None, &tagged.to_string()).unwrap().tags, ["tag:web"]);
}

#[tokio::test(start_paused = true)]
async fn whoever_has_no_tailnet_waits_for_an_administrator() {
    let world = World::new().await;
    let stranger = person("7", "eve@gmail.com", None);
    let (id, answer) = world.begin(1, register(1)).await;
    assert_eq!(world.control.sign_in(&id, &stranger, None).await, Ok(Outcome::AsksAdministrator));
    assert!(world.control.registered(&node_key(1)).is_none());
    let login = world.admin().login(&id).unwrap();
    assert_eq!(login.person.unwrap().login, "eve@gmail.com");
    // Nobody else puts themselves in her place meanwhile.
    assert_eq!(world.control.sign_in(&id, &ann(), None).await, Err(SignInError::Other));
    let wait = world.register(1, RegisterRequest { followup: answer.auth_url, ..register(1) });
    let admin = world.admin();
    let (answer, node) = tokio::join!(wait, admin.approve_person(&id, "default", None));
    assert_eq!(node.unwrap().user.as_deref(), Some("eve@gmail.com"));
    assert!(answer.machine_authorized);
    // From now on she is a user, and comes in by herself.
    assert_eq!(world.signed_in(2, &stranger).await, is_in("default"));
    // Removed, she waits again.
    for number in [1, 2] {
        world.admin().remove_node(None, &world.id(number).to_string()).await.unwrap();
    }
    world.admin().remove_user("default", "eve@gmail.com", Belongings::Keep).await.unwrap();
    assert_eq!(world.signed_in(3, &stranger).await, Outcome::AsksAdministrator);
}

#[tokio::test(start_paused = true)]
async fn an_administrator_says_that_a_person_is_a_user() {
    let world = World::new().await;
    world.admin().create_user("default", "bob@example.com", None).await.unwrap();
    let bob = person("2", "bob@example.com", None);
    let (id, _) = world.begin(1, register(1)).await;
    let early = world.admin().approve_person(&id, "default", Some("bob@example.com")).await;
    assert!(matches!(early, Err(AdminError::Invalid { .. })), "nobody logged in yet");
    world.control.sign_in(&id, &bob, None).await.unwrap();
    world.admin().approve_person(&id, "default", Some("bob@example.com")).await.unwrap();
    assert_eq!(world.signed_in(2, &bob).await, is_in("default"));
    assert_eq!(world.owner(2), "bob@example.com");
    // Nobody else becomes Bob.
    let (id, _) = world.begin(3, register(3)).await;
    world.control.sign_in(&id, &person("3", "bobby@example.com", None), None).await.unwrap();
    let taken = world.admin().approve_person(&id, "default", Some("bob@example.com")).await;
    assert!(matches!(taken, Err(AdminError::Taken { .. })), "{taken:?}");
    // Nor is Bob somebody else, too.
    world.admin().create_user("default", "boss@example.com", None).await.unwrap();
    let (id, _) = world.begin(4, register(4)).await;
    world.control.sign_in(&id, &person("3", "x@example.com", None), None).await.unwrap();
    world.admin().approve_person(&id, "default", None).await.unwrap();
    let (id, _) = world.begin(5, RegisterRequest { tailnet: "nowhere".to_owned(), ..register(5) }).await;
    world.control.sign_in(&id, &bob, None).await.unwrap();
    let other = world.admin().approve_person(&id, "default", Some("boss@example.com")).await;
    assert!(matches!(other, Err(AdminError::Refused { .. })), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn a_hint_leads_only_to_what_is_theirs() {
    let world = World::new().await;
    world.admin().create_tailnet("work").await.unwrap();
    world.admin().create_tailnet("other").await.unwrap();
    let ann = ann();
    // Ann is a user of "work", too.
    let (id, _) = world.begin(1, RegisterRequest { tailnet: "work".to_owned(), ..register(1) }).await;
    assert_eq!(world.control.sign_in(&id, &ann, None).await, Ok(Outcome::AsksAdministrator));
    world.admin().approve_person(&id, "work", None).await.unwrap();
    for (number, hint, chosen, wanted) in [
        (2, "", None, Ok(is_in("default"))),
        (3, "work", None, Ok(is_in("work"))),
        (4, "required:work", None, Ok(is_in("work"))),
        (5, "", Some("work"), Ok(is_in("work"))),
        (6, "", Some("other"), Err(SignInError::Tailnet)),
        (7, "default", Some("work"), Err(SignInError::Tailnet)),
        (8, "required:other", None, Ok(Outcome::AsksAdministrator)),
        (9, "missing", None, Ok(Outcome::AsksAdministrator)),
    ] {
        let (id, _) = world.begin(number, RegisterRequest { tailnet: hint.to_owned(), ..register(number) }).await;
        assert_eq!(world.control.sign_in(&id, &ann, chosen).await, wanted, "{hint:?} {chosen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_person_makes_one_tailnet_where_that_is_allowed() {
    let world = World::new().await;
    let maker = |subject: &str| Person { may_make_tailnet: true, ..person(subject, "default@gmail.com", None) };
    let (first, _) = world.begin(1, register(1)).await;
    let (second, _) = world.begin(2, register(2)).await;
    let one = maker("1");
    let both = tokio::join!(world.control.sign_in(&first, &one, None), world.control.sign_in(&second, &one, None));
    assert_eq!(both, (Ok(is_in("default-1")), Ok(is_in("default-1"))));
    let owner = world.admin().users(Some("default-1")).unwrap();
    assert_eq!((owner.len(), owner[0].login.as_str(), owner[0].role.as_str()), (1, "default@gmail.com", "owner"));
    assert_eq!(world.signed_in(3, &maker("2")).await, is_in("default-2"), "another person of the same address");
    // Isolated: neither sees the other.
    assert!(world.whole_map(1).peers.len() == 1 && world.whole_map(3).peers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_machine_waits_where_machines_need_approval() {
    let world = World::new().await;
    world.admin().set_machine_approval("default", true).await.unwrap();
    let waits = Outcome::In { tailnet: "default".to_owned(), machine_waits: true };
    assert_eq!(world.signed_in(1, &ann()).await, waits);
    assert_eq!(world.signed_in(2, &ann()).await, waits);
    let key = world.auth_key(NewAuthKey {
        pre_approved: true,
        user: Some("ann@example.com".to_owned()),
        ..NewAuthKey::default()
    });
    let answer = world.register(3, with_key(register(3), &key.await)).await;
    assert!(answer.machine_authorized, "a key can approve beforehand");
    assert!(world.whole_map(3).peers.is_empty(), "those that wait are nobody's peers");
    assert!(!world.control.relay_admits(&node_key(1)));
    world.admin().approve_node(None, &world.id(1).to_string()).await.unwrap();
    assert_eq!(world.whole_map(3).names(), ["host1"]);
    let log = world.admin().audit(None, None, 1).await.unwrap();
    assert_eq!((log[0].who.as_str(), log[0].what.as_str()), ("cli:uid=0", "node.approve"));
    // Logging in again asks nobody again.
    let (id, _) = world.begin(1, RegisterRequest { old_node_key: Some(node_key(1)), ..register(4) }).await;
    assert_eq!(world.control.sign_in(&id, &ann(), None).await, Ok(is_in("default")));
}
