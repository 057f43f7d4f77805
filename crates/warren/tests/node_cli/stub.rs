//! A daemon that answers what the test wants, on a socket of its own.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use warren_node::local_api::types::{PingResult, StartOptions, Status, UserProfile, WhoIs};
use warren_node::local_api::{Bus, Peers, Refusal, Request, Shared, Who, listen, serve};
use warren_node::prefs::Prefs;

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What the daemon knows and has been asked.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) status: Status,
    pub(crate) prefs: Prefs,
    pub(crate) ping: PingResult,
    pub(crate) netcheck: Value,
    /// Answers the next write.
    pub(crate) refusal: Option<Refusal>,
    pub(crate) edits: Vec<Value>,
    pub(crate) started: Vec<StartOptions>,
    /// What the bus shows once something was started.
    on_start: Option<Bus>,
}

/// The daemon; it ends with the value.
pub(crate) struct Stub {
    socket: PathBuf,
    world: Arc<Mutex<World>>,
    bus: watch::Sender<Bus>,
    _runtime: Runtime,
}

impl Drop for Stub {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Stub {
    pub(crate) fn new(name: &str) -> Self {
        let socket = std::env::temp_dir().join(format!("warren-cli-{name}-{}.sock", std::process::id()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (requests, mut asked) = mpsc::channel(4);
        let bus = watch::Sender::new(Bus::default());
        let uid = rustix::process::geteuid().as_raw();
        let operator = watch::channel(String::new()).1;
        let shared = Shared { requests, bus: bus.subscribe(), operator, daemon_uid: uid, dialer: None };
        let world = Arc::new(Mutex::new(World::default()));
        let listener = runtime.block_on(async { listen(&socket) }).unwrap();
        runtime.spawn(serve(listener, shared));
        let (seen, shown) = (Arc::clone(&world), bus.clone());
        runtime.spawn(async move {
            while let Some(request) = asked.recv().await {
                answer(&mut seen.lock().unwrap(), &shown, request);
            }
        });
        Self { socket, world, bus, _runtime: runtime }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Sets what the bus shows.
    pub(crate) fn bus(&self, bus: Bus) {
        self.bus.send_replace(bus);
    }

    /// Sets what the bus shows after the next login or start.
    pub(crate) fn bus_after_start(&self, bus: Bus) {
        self.world().on_start = Some(bus);
    }

    /// Runs a command against this daemon.
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.run_with(words, &[])
    }

    /// Runs a command, lets the bus show `next` once the command has printed `text`, and waits for its end.
    pub(crate) fn run_and_then(&self, words: &[&str], text: &str, next: Bus) -> Output {
        let socket = self.socket.to_str().unwrap();
        let mut child = command(&[words, &["--socket", socket]].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, heard) = std::sync::mpsc::sync_channel(1024);
        let readers =
            [read(child.stdout.take().unwrap(), 0, said.clone()), read(child.stderr.take().unwrap(), 1, said)];
        let mut printed = [Vec::new(), Vec::new()];
        let mut next = Some(next);
        for (stream, bytes) in heard {
            printed[stream].extend(bytes);
            if String::from_utf8_lossy(&printed[stream]).contains(text)
                && let Some(next) = next.take()
            {
                self.bus.send_replace(next);
            }
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        let [stdout, stderr] = printed.map(|bytes| String::from_utf8(bytes).unwrap());
        Output { code: child.wait().unwrap().code().unwrap(), stdout, stderr }
    }

    /// Runs a command with further environment variables.
    pub(crate) fn run_with(&self, words: &[&str], environment: &[(&str, Option<&str>)]) -> Output {
        let socket = self.socket.to_str().unwrap();
        run(&[words, &["--socket", socket]].concat(), environment)
    }
}

/// Answers one request.
fn answer(world: &mut World, bus: &watch::Sender<Bus>, request: Request) {
    let refusal = |world: &mut World| world.refusal.take().map_or(Ok(()), Err);
    let begin = |world: &mut World| {
        if let Some(next) = world.on_start.take() {
            bus.send_replace(next);
        }
    };
    match request {
        Request::Status(peers, reply) => {
            let mut status = world.status.clone();
            if peers == Peers::Omitted {
                status.peer.clear();
            }
            drop(reply.send(Box::new(status)));
        }
        Request::WhoIs(who, reply) => {
            let known = who == Who::Address([100, 64, 0, 2].into());
            let node = json!({"ID": 2, "StableID": "n2", "Name": "beta.t.example.", "Addresses": ["100.64.0.2/32"]});
            let found = WhoIs {
                node: serde_json::value::to_raw_value(&node).unwrap(),
                user_profile: UserProfile { id: 7, login_name: "ann@t.example".into(), ..UserProfile::default() },
                cap_map: [].into(),
            };
            drop(reply.send(known.then_some(found)));
        }
        Request::Prefs(reply) => drop(reply.send(world.prefs.clone())),
        Request::EditPrefs(_, change, reply) => {
            let outcome = refusal(world).map(|()| world.prefs.clone());
            world.edits.push(change);
            drop(reply.send(outcome));
        }
        Request::Start(_, options, reply) => {
            world.started.push(options);
            begin(world);
            drop(reply.send(refusal(world)));
        }
        Request::LoginInteractive(reply) => {
            begin(world);
            drop(reply.send(refusal(world)));
        }
        Request::Logout(reply) | Request::ResetAuth(reply) => drop(reply.send(refusal(world))),
        Request::Ping(_, reply) => drop(reply.send(world.ping.clone())),
        Request::Netcheck(reply) | Request::DerpMap(reply) => drop(reply.send(world.netcheck.clone())),
        Request::Shutdown(reply) => drop(reply.send(())),
    }
}

/// Prepares a command in an environment that says nothing.
pub(crate) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
    command.args(words).env_clear().stdin(Stdio::null());
    command
}

/// Runs a command.
pub(crate) fn run(words: &[&str], environment: &[(&str, Option<&str>)]) -> Output {
    let mut command = command(words);
    for (name, value) in environment {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let output = command.output().unwrap();
    Output {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn read(
    mut from: impl Read + Send + 'static,
    stream: usize,
    to: std::sync::mpsc::SyncSender<(usize, Vec<u8>)>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            to.send((stream, buffer[..count].to_vec())).unwrap();
        }
    })
}
