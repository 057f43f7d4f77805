//! A folder in memory that remembers all that was done to it, so that it can be looked at as any crash leaves it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use crate::store::{Files, Source};

/// Files in memory, which outlive the store, on a disk of limited room, and all that was ever done to them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    pub(crate) files: Rc<RefCell<BTreeMap<String, Vec<u8>>>>,
    /// Bytes that can still be written.
    pub(crate) room: Rc<RefCell<Option<usize>>>,
    pub(crate) done: Rc<RefCell<Vec<Step>>>,
}

/// Is something that was done to files.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Append(String, Vec<u8>),
    Overwrite(String, usize, Vec<u8>),
    Truncate(String, usize),
    Remove(String),
}

impl Step {
    /// Does the beginning of it: as many bytes as are said.
    fn apply(&self, files: &mut BTreeMap<String, Vec<u8>>, most: usize) {
        match self {
            Self::Append(name, bytes) => {
                files.entry(name.clone()).or_default().extend(bytes.iter().take(most));
            }
            Self::Overwrite(name, offset, bytes) => {
                let file = files.get_mut(name).unwrap();
                file.resize(file.len().max(offset + bytes.len()), 0);
                file[*offset..].iter_mut().zip(bytes).take(most).for_each(|(to, from)| *to = *from);
            }
            Self::Truncate(name, length) => files.get_mut(name).unwrap().truncate(*length),
            Self::Remove(name) => drop(files.remove(name)),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Append(_, bytes) | Self::Overwrite(_, _, bytes) => bytes.len(),
            Self::Truncate(..) | Self::Remove(_) => 0,
        }
    }
}

impl Source for Memory {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.files.borrow().iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect())
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let files = self.files.borrow();
        let bytes = files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset).unwrap().min(bytes.len());
        Ok(bytes[start..start.saturating_add(length).min(bytes.len())].to_vec())
    }
}

impl Memory {
    fn apply(&self, step: Step, most: usize) {
        step.apply(&mut self.files.borrow_mut(), most);
        self.done.borrow_mut().push(step);
    }
}

impl Files for Memory {
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let fits = self.room.borrow().map_or(bytes.len(), |room| room.min(bytes.len()));
        self.apply(Step::Append(name.to_owned(), bytes[..fits].to_vec()), fits);
        let mut room = self.room.borrow_mut();
        *room = room.map(|room| room - fits);
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn overwrite(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.apply(Step::Overwrite(name.to_owned(), usize::try_from(offset).unwrap(), bytes.to_vec()), bytes.len());
        Ok(())
    }

    fn sync(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).unwrap();
        let before = self.files.borrow().get(name).ok_or(io::ErrorKind::NotFound)?.len();
        self.apply(Step::Truncate(name.to_owned(), length), 0);
        let mut room = self.room.borrow_mut();
        *room = room.map(|room| room + before - length);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        if !self.files.borrow().contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.apply(Step::Remove(name.to_owned()), 0);
        Ok(())
    }
}

impl Memory {
    /// Copies the files, as a disk is after a crash or from a backup.
    pub(crate) fn copy(&self) -> Self {
        Self { files: Rc::new(RefCell::new(self.files.borrow().clone())), ..Self::default() }
    }

    /// Returns the files as a crash leaves them while step `at` is done: `most` bytes of it.
    pub(crate) fn crashed(&self, at: usize, most: usize) -> Self {
        let mut files = BTreeMap::new();
        let done = self.done.borrow();
        done[..at].iter().for_each(|step| step.apply(&mut files, usize::MAX));
        done[at].apply(&mut files, most);
        Self { files: Rc::new(RefCell::new(files)), ..Self::default() }
    }

    pub(crate) fn file(&self, kind: &str, number: usize) -> String {
        self.files.borrow().keys().filter(|name| name.starts_with(kind)).nth(number).unwrap().clone()
    }

    pub(crate) fn segment(&self, number: usize) -> String {
        self.file("segment-", number)
    }

    pub(crate) fn segments(&self) -> usize {
        self.files.borrow().keys().filter(|name| name.starts_with("segment-")).count()
    }

    pub(crate) fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        edit(self.files.borrow_mut().get_mut(name).unwrap());
    }
}
