//! What the node keeps on disk: its keys and its settings, in one file that is replaced whole.
//!
//! A new node key is stored as *pending* before the server hears of it, so a crash between the two never leaves the
//! server with a key that this machine has lost.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use warren_os::{FileError, LockError, LockFile};
use warren_wire::key::{MachineSecret, NodeKey, NodeSecret};
use zeroize::Zeroizing;

use crate::netmap::KEPT_MAX;
use crate::prefs::Prefs;

/// Name of the state file in the state directory.
pub const STATE_FILE: &str = "node.json";

/// Name of the file whose lock says that a daemon uses the directory.
const LOCK_FILE: &str = "node.lock";

/// Name of the file with the last map.
const MAP_FILE: &str = "map.json";

/// Largest state file that is read.
const MAX_STATE_BYTES: u64 = 64 * 1024;

/// Version of the file's layout.
const VERSION: u32 = 1;

/// Owns the state directory while the daemon lives.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: LockFile,
}

/// Holds everything that survives a restart.
#[derive(Debug, Clone)]
pub struct State {
    /// Identity of this installation.
    pub machine: Arc<MachineSecret>,
    /// Keys of the login.
    pub keys: NodeKeys,
    /// What the user chose.
    pub prefs: Prefs,
}

/// Holds the node keys of a login.
#[derive(Debug, Clone, Default)]
pub struct NodeKeys {
    /// Registered key.
    pub current: Option<Arc<NodeSecret>>,
    /// Key that is being registered; becomes [`Self::current`] when the server has accepted it.
    pub pending: Option<Arc<NodeSecret>>,
    /// Key before the current one, named to the server so that it knows the node again.
    pub previous: Option<NodeKey>,
}

/// Says why the state cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file cannot be written, or the directory cannot be made private.
    #[error(transparent)]
    File(#[from] FileError),
    /// The state file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon holds the directory.
    #[error("another warren node uses this state directory: {0}")]
    InUse(LockError),
    /// The state cannot be put into words; a fault of this program.
    #[error("the state cannot be encoded: {0}")]
    Encode(#[from] serde_json::Error),
    /// The system gives no randomness for a new identity.
    #[error("the system gives no randomness")]
    Random,
    /// The file is not what this program writes; it is left alone, since it holds the machine's identity.
    #[error(
        "{0} is damaged or from a newer version; restore it from a backup, or move it away to join as a new machine"
    )]
    Damaged(PathBuf),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    machine_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending_node_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous_node_key: Option<NodeKey>,
    #[serde(default)]
    prefs: Prefs,
}

impl Drop for Stored {
    fn drop(&mut self) {
        use zeroize::Zeroize as _;
        self.machine_key.zeroize();
        self.node_key.zeroize();
        self.pending_node_key.zeroize();
    }
}

impl Store {
    /// Takes the directory (made if missing, mode 0700) and reads the state; a fresh directory gets a new identity,
    /// which is on disk when this returns.
    ///
    /// # Errors
    /// Refuses a directory that another daemon holds, and a state file that cannot be understood.
    pub fn open(dir: &Path) -> Result<(Self, State), StateError> {
        warren_os::create_private_dir(dir)?;
        let lock = LockFile::acquire(&dir.join(LOCK_FILE)).map_err(|error| {
            if let LockError::File(error) = error { StateError::File(error) } else { StateError::InUse(error) }
        })?;
        let store = Self { dir: dir.to_owned(), _lock: lock };
        let state = if let Some(state) = store.load()? {
            state
        } else {
            let fresh = State {
                machine: Arc::new(MachineSecret::generate().map_err(|_| StateError::Random)?),
                keys: NodeKeys::default(),
                prefs: Prefs::default(),
            };
            store.save(&fresh)?;
            fresh
        };
        Ok((store, state))
    }

    fn load(&self) -> Result<Option<State>, StateError> {
        let path = self.dir.join(STATE_FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Read { path, source }),
        };
        let mut text = Zeroizing::new(Vec::with_capacity(4096));
        file.take(MAX_STATE_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(|source| StateError::Read { path: path.clone(), source })?;
        decode(&text).map(Some).ok_or(StateError::Damaged(path))
    }

    /// Returns the file in which the last map is kept.
    #[must_use]
    pub fn map_file(&self) -> MapFile {
        MapFile(Arc::new(MapFileState { path: self.dir.join(MAP_FILE), newest: Mutex::new(0) }))
    }

    /// Replaces the state on disk; when this returns without error the new state survives a power cut.
    ///
    /// # Errors
    /// Says which file operation failed; the old state is then still whole.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let text = encode(state)?;
        warren_os::write_private(&self.dir.join(STATE_FILE), &text)?;
        Ok(())
    }
}

/// Is the file in which the last map is kept. Clones are the same file; what is written and wiped at the same time ends
/// as the later call wants it.
#[derive(Debug, Clone)]
pub struct MapFile(Arc<MapFileState>);

#[derive(Debug)]
struct MapFileState {
    path: PathBuf,
    /// Number of the newest wish; an older one is void.
    newest: Mutex<u64>,
}

/// Is a wish to write the map file, void once there is a newer one.
#[derive(Debug)]
pub struct MapTicket(u64);

impl MapFile {
    /// Reads the file, at most [`KEPT_MAX`] bytes and one.
    ///
    /// # Errors
    /// Returns what the system says; a file that is not there is `None`.
    pub fn read(&self) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let file = match File::open(&self.0.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Zeroizing::new(Vec::new());
        let most = u64::try_from(KEPT_MAX).unwrap_or(u64::MAX);
        file.take(most.saturating_add(1)).read_to_end(&mut text)?;
        Ok(Some(text))
    }

    /// Announces a write, which makes those void that were announced before.
    #[must_use]
    pub fn announce(&self) -> MapTicket {
        let mut newest = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *newest += 1;
        MapTicket(*newest)
    }

    /// Replaces the file, unless something newer was announced or the file was wiped since. Waits for the disk.
    ///
    /// # Errors
    /// Says which file operation failed; the old file is then still whole.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is good for one write")]
    pub fn write(&self, ticket: MapTicket, text: &[u8]) -> Result<(), FileError> {
        // Held while writing: a wipe waits, and then takes away what was written.
        let newest = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if *newest == ticket.0 { warren_os::write_private(&self.0.path, text) } else { Ok(()) }
    }

    /// Takes the file away, and with it every write that was announced.
    pub fn wipe(&self) {
        let mut newest = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *newest += 1;
        match std::fs::remove_file(&self.0.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.path.display(), %error, "the kept map cannot be removed");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn encode(state: &State) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let text = |key: &Arc<NodeSecret>| key.to_storage_text().to_string();
    let stored = Stored {
        version: VERSION,
        machine_key: state.machine.to_storage_text().to_string(),
        node_key: state.keys.current.as_ref().map(text),
        pending_node_key: state.keys.pending.as_ref().map(text),
        previous_node_key: state.keys.previous,
        prefs: state.prefs.clone(),
    };
    serde_json::to_vec_pretty(&stored).map(Zeroizing::new)
}

fn decode(text: &[u8]) -> Option<State> {
    let stored: Stored = serde_json::from_slice(text).ok()?;
    // A pin that cannot be read must not become no pin.
    if stored.version != VERSION || stored.prefs.server_pin().is_err() {
        return None;
    }
    let node_key = |text: &Option<String>| match text {
        None => Some(None),
        Some(text) => NodeSecret::from_storage_text(text).ok().map(|key| Some(Arc::new(key))),
    };
    Some(State {
        machine: Arc::new(MachineSecret::from_storage_text(&stored.machine_key).ok()?),
        keys: NodeKeys {
            current: node_key(&stored.node_key)?,
            pending: node_key(&stored.pending_node_key)?,
            previous: stored.previous_node_key,
        },
        prefs: stored.prefs.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("warren-node-state-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn state_survives_reopening_with_private_modes() {
        let dir = scratch("reopen");
        let (store, mut state) = Store::open(&dir).unwrap();
        state.keys.pending = Some(Arc::new(NodeSecret::generate().unwrap()));
        state.keys.previous = Some(NodeSecret::generate().unwrap().public());
        state.prefs.hostname = "alpha".into();
        store.save(&state).unwrap();
        drop(store);
        let (_store, again) = Store::open(&dir).unwrap();
        assert_eq!(again.machine.public(), state.machine.public());
        assert_eq!(again.keys.pending.unwrap().public(), state.keys.pending.unwrap().public());
        assert_eq!(again.keys.previous, state.keys.previous);
        assert!(again.keys.current.is_none());
        assert_eq!(again.prefs, state.prefs);
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(dir.join(STATE_FILE)).unwrap().mode() & 0o777, 0o600);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let dir = scratch("second");
        let _first = Store::open(&dir).unwrap();
        assert!(matches!(Store::open(&dir), Err(StateError::InUse(_))));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_damaged_file_is_left_alone() {
        let dir = scratch("damaged");
        drop(Store::open(&dir).unwrap());
        let good = fs::read_to_string(dir.join(STATE_FILE)).unwrap();
        let lost_pin = good.replace("\"ServerKey\": \"\"", "\"ServerKey\": \"mkey:0\"");
        assert_ne!(good, lost_pin);
        for text in ["", "{", "{\"version\":1,\"machine_key\":\"privkey:00\"}", "{\"version\":2}", &lost_pin] {
            fs::write(dir.join(STATE_FILE), text).unwrap();
            assert!(matches!(Store::open(&dir), Err(StateError::Damaged(_))), "{text}");
            assert_eq!(fs::read_to_string(dir.join(STATE_FILE)).unwrap(), text);
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn leftovers_of_a_crash_while_saving_do_no_harm() {
        let dir = scratch("crash");
        let (store, state) = Store::open(&dir).unwrap();
        drop(store);
        fs::write(dir.join("node.json.new"), "{\"vers").unwrap();
        let (store, again) = Store::open(&dir).unwrap();
        assert_eq!(again.machine.public(), state.machine.public());
        store.save(&again).unwrap();
        fs::remove_dir_all(dir).unwrap();
    }
}
