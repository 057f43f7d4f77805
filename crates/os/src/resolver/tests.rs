use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A machine's files in a directory of their own.
struct World {
    dir: PathBuf,
    resolver: SystemResolver,
}

impl World {
    fn new(before: Option<&str>) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("warren-names-{}-{number}", std::process::id()));
        fs::create_dir_all(dir.join("bin")).unwrap();
        let resolver = SystemResolver {
            path: dir.join("resolv.conf"),
            nsswitch: dir.join("nsswitch.conf"),
            programs: Some(dir.join("bin")),
            ..SystemResolver::new("warren0".parse().unwrap())
        };
        let world = Self { dir, resolver };
        if let Some(text) = before {
            fs::write(world.path(), text).unwrap();
        }
        world
    }

    fn path(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    /// Plays a program that writes down how it is called, and fails if it is called with `refused`.
    fn play(&self, program: &str, refused: &str) {
        let path = self.dir.join("bin").join(program);
        let log = self.dir.join("log");
        let script = format!(
            "#!/bin/bash\n[ \"$1\" = \"{refused}\" ] && exit 1\n{{ echo \"$*\"; cat; }} >> {}\n",
            log.display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn settings(domains: Option<&[&str]>) -> NameSettings {
    NameSettings {
        servers: vec![[100, 100, 100, 100].into()],
        search: vec!["t.example".to_owned()],
        domains: domains.map(|domains| domains.iter().map(|&domain| domain.to_owned()).collect()),
    }
}

#[test]
fn a_plain_file_is_written_and_comes_back_byte_by_byte() {
    for before in ["nameserver 192.0.2.1\n", "nameserver 192.0.2.1", "", "search x\n\n# end"] {
        let mut world = World::new(Some(before));
        fs::set_permissions(world.path(), fs::Permissions::from_mode(0o600)).unwrap();
        for _ in 0..2 {
            world.resolver.set(&settings(None)).unwrap();
        }
        assert!(world.text().contains("\nnameserver 100.100.100.100\nsearch t.example"), "{}", world.text());
        assert_eq!(settings_before(&world.text()), before);
        // Another life knows nothing of this one.
        let mut next = World::new(None);
        next.resolver.path = world.path();
        next.resolver.restore().unwrap();
        assert_eq!(world.text(), before);
        assert_eq!(fs::metadata(world.path()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&world.dir).unwrap().count(), 2, "no further file is left");
        next.resolver.restore().unwrap();
        assert_eq!(world.text(), before, "there is nothing to put back twice");
    }
}

#[test]
fn a_link_is_a_link_again_and_nothing_is_nothing() {
    let mut world = World::new(None);
    world.resolver.set(&settings(None)).unwrap();
    world.resolver.restore().unwrap();
    assert!(!world.path().exists());

    let target = world.dir.join("elsewhere");
    fs::write(&target, "nameserver 192.0.2.1\n").unwrap();
    std::os::unix::fs::symlink("elsewhere", world.path()).unwrap();
    world.resolver.set(&settings(None)).unwrap();
    assert!(fs::symlink_metadata(world.path()).unwrap().is_file());
    assert_eq!(fs::read_to_string(&target).unwrap(), "nameserver 192.0.2.1\n", "what it led to is left alone");
    assert_eq!(settings_before(&world.text()), "nameserver 192.0.2.1\n");
    world.resolver.restore().unwrap();
    assert_eq!(fs::read_link(world.path()).unwrap(), Path::new("elsewhere"));
}

#[test]
fn what_somebody_else_writes_meanwhile_counts() {
    let mut world = World::new(Some("nameserver 192.0.2.1\n"));
    world.resolver.set(&settings(None)).unwrap();
    fs::write(world.path(), "nameserver 192.0.2.2\n").unwrap();
    world.resolver.set(&settings(None)).unwrap();
    assert_eq!(settings_before(&world.text()), "nameserver 192.0.2.2\n");
    fs::write(world.path(), "nameserver 192.0.2.3\n").unwrap();
    world.resolver.restore().unwrap();
    assert_eq!(world.text(), "nameserver 192.0.2.3\n");
}

#[test]
fn a_file_that_cannot_be_replaced_is_overwritten_in_one_piece() {
    let world = World::new(Some("nameserver 192.0.2.1\n"));
    world.resolver.overwrite("a longer text than there was, with all that was there\n").unwrap();
    world.resolver.overwrite("short").unwrap();
    assert_eq!(world.text(), "short");
    // Ended in the middle of it: what is to be cut off says so.
    fs::write(world.path(), format!("short\n{}####", text::TAIL)).unwrap();
    let mut world = world;
    world.resolver.restore().unwrap();
    assert_eq!(world.text(), "short\n");
}

#[test]
fn resolved_is_told_for_the_interface_alone() {
    let head = "# This is managed by man:systemd-resolved(8).\nnameserver 127.0.0.53\n";
    let mut world = World::new(Some(head));
    world.play("resolvectl", "none");
    world.resolver.set(&settings(Some(&["t.example", "corp.example"]))).unwrap();
    world.resolver.set(&settings(Some(&["t.example", "corp.example"]))).unwrap();
    let log = world.log();
    assert_eq!(log[0], "dns warren0 100.100.100.100");
    assert_eq!(log[1], "domain warren0 t.example ~corp.example");
    assert_eq!((log[2].as_str(), log.len()), ("default-route warren0 no", 8));
    world.resolver.set(&settings(None)).unwrap();
    assert!(world.log().contains(&"domain warren0 t.example ~.".to_owned()));
    world.resolver.restore().unwrap();
    assert_eq!(world.log().last().unwrap(), "revert warren0");
    assert_eq!(world.text(), head, "the file is its own");
}

#[test]
fn without_its_program_resolveds_file_is_written_like_any() {
    let head = "# This is managed by man:systemd-resolved(8).\nnameserver 127.0.0.53\n";
    let mut world = World::new(Some(head));
    world.resolver.set(&settings(None)).unwrap();
    assert!(world.text().contains("nameserver 100.100.100.100"));
    world.resolver.restore().unwrap();
    assert_eq!(world.text(), head);
}

#[test]
fn both_kinds_of_resolvconf_get_a_record_and_lose_it() {
    let head = "# Generated by resolvconf\nnameserver 192.0.2.1\n";
    for (refused, words) in [("none", "-m 0 -x -a warren0"), ("-m", "-a tun-warren0.inet")] {
        let mut world = World::new(Some(head));
        world.play("resolvconf", refused);
        world.resolver.set(&settings(None)).unwrap();
        assert_eq!(world.log(), [words, "nameserver 100.100.100.100", "search t.example"]);
        world.resolver.restore().unwrap();
        assert_eq!(world.log()[3..], ["-f -d warren0", "-d tun-warren0.inet"]);
        assert_eq!(world.text(), head);
    }
}

#[test]
fn what_is_no_settings_file_is_left_alone() {
    let mut world = World::new(None);
    for bytes in [vec![0xff, 0xfe], vec![b'a'; 70_000]] {
        fs::write(world.path(), &bytes).unwrap();
        assert!(matches!(world.resolver.set(&settings(None)), Err(ResolverError::NotSettings(_))));
        assert_eq!(fs::read(world.path()).unwrap(), bytes);
    }
}

/// The engine waits for these programs: one that hangs must not hold it up, nor one that leaves somebody behind who keeps its
/// output open.
#[test]
fn a_program_that_does_not_end_is_ended() {
    let mut world = World::new(Some("# Generated by resolvconf\nnameserver 192.0.2.1\n"));
    world.resolver.patience = Duration::from_millis(200);
    let script = |text: &str| {
        let path = world.dir.join("bin/resolvconf");
        fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("sleep 1000 & wait");
    let error = world.resolver.tell("resolvconf", &[], "").unwrap_err().to_string();
    assert!(error.contains("has not ended within 0.2 s"), "{error}");
    world.resolver.patience = PATIENCE;
    let left = world.dir.join("left");
    script(&format!("sleep 20 & echo $! > {}; echo no such record >&2; exit 3", left.display()));
    let error = world.resolver.tell("resolvconf", &[], "").unwrap_err().to_string();
    assert!(error.contains("no such record"), "{error}");
    let left: i32 = fs::read_to_string(left).unwrap().trim().parse().unwrap();
    let ended = rustix::process::kill_process(rustix::process::Pid::from_raw(left).unwrap(), Signal::KILL);
    assert_eq!(ended, Ok(()), "somebody waited for what was left behind");
}

/// Ours is longer than what it replaces, and must be found again.
#[test]
fn a_long_file_comes_back_byte_by_byte() {
    let before = "#\n".repeat(FILE_MAX / 2);
    let mut world = World::new(Some(&before));
    world.resolver.set(&settings(None)).unwrap();
    assert!(world.text().len() > FILE_MAX);
    world.resolver.set(&settings(Some(&["x.example"]))).unwrap();
    world.resolver.restore().unwrap();
    assert_eq!(world.text(), before);
}
