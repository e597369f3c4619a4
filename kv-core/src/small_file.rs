//! Small files that are replaced as a whole: identities, addresses, marks, preferences.
//!
//! A file is written under another name and synced, then renamed over the old one, and the folder is synced. After a
//! crash of the process or a loss of power it is the old one or the new one, never empty and never half.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// What a folder does for its files. The steps are apart, so that a test can crash between any two of them.
pub trait Folder {
    /// Creates an empty file; an existing one loses its content.
    ///
    /// # Errors
    /// As the medium says.
    fn create(&mut self, name: &str) -> io::Result<()>;
    /// Writes the content of a file that was just created.
    ///
    /// # Errors
    /// As the medium says.
    fn write(&mut self, name: &str, content: &[u8]) -> io::Result<()>;
    /// Makes the content durable.
    ///
    /// # Errors
    /// As the medium says.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Gives a file another name; a file of that name is replaced.
    ///
    /// # Errors
    /// As the medium says.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Makes names durable.
    ///
    /// # Errors
    /// As the medium says.
    fn sync_folder(&mut self) -> io::Result<()>;
}

/// The name under which a file is written before it is renamed.
#[must_use]
pub fn name_before(name: &str) -> String {
    format!("{name}.new")
}

/// Replaces the file `name` of a folder; durable when it returns.
///
/// # Errors
/// As the medium says; the file then is the old one or the new one.
pub fn replace_in(folder: &mut impl Folder, name: &str, content: &[u8]) -> io::Result<()> {
    let before = name_before(name);
    folder.create(&before)?;
    folder.write(&before, content)?;
    folder.sync(&before)?;
    folder.rename(&before, name)?;
    folder.sync_folder()
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever the user's mask lets.
    Usual,
    /// Its owner alone.
    Owner,
}

/// Replaces the file at `path`, in a folder that exists; durable when it returns.
///
/// # Errors
/// As the operating system says; the file then is the old one or the new one.
pub fn replace(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    let (mut folder, name) = OsFolder::of(path, access)?;
    replace_in(&mut folder, name, content)
}

/// Removes the file at `path`; its absence is durable when it returns. None of that name is fine.
///
/// # Errors
/// As the operating system says.
pub fn remove(path: &Path) -> io::Result<()> {
    let (mut folder, name) = OsFolder::of(path, Access::Usual)?;
    match fs::remove_file(folder.path.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => folder.sync_folder(),
    }
}

/// A folder of the operating system.
struct OsFolder {
    path: PathBuf,
    access: Access,
    /// The file that was created last.
    file: Option<File>,
}

impl OsFolder {
    /// The folder of `path`, and the name in it.
    fn of(path: &Path, access: Access) -> io::Result<(Self, &str)> {
        let name = path.file_name().and_then(OsStr::to_str);
        let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidFilename, "the path names no file"))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok((Self { path: folder.to_owned(), access, file: None }, name))
    }

    fn file(&mut self) -> io::Result<&mut File> {
        self.file.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

impl Folder for OsFolder {
    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        if self.access == Access::Owner {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        }
        self.file = Some(options.open(self.path.join(name))?);
        Ok(())
    }

    fn write(&mut self, _: &str, content: &[u8]) -> io::Result<()> {
        self.file()?.write_all(content)
    }

    fn sync(&mut self, _: &str) -> io::Result<()> {
        self.file()?.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        sync_folder(&self.path)
    }
}

/// Creates a folder, and those above it that are missing; durable when it returns. One that exists is fine.
///
/// # Errors
/// As the operating system says; `AlreadyExists` if something else has the name.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_folder(above)?;
    match fs::create_dir(path) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(above),
    }
}

/// Makes the names in a folder durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes what was done, and fails at one step.
    #[derive(Default)]
    struct Noted {
        done: Vec<String>,
        fails_at: Option<usize>,
    }

    impl Noted {
        fn step(&mut self, what: String) -> io::Result<()> {
            if self.fails_at == Some(self.done.len()) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.done.push(what);
            Ok(())
        }
    }

    impl Folder for Noted {
        fn create(&mut self, name: &str) -> io::Result<()> {
            self.step(format!("create {name}"))
        }

        fn write(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
            self.step(format!("write {name} {}", content.len()))
        }

        fn sync(&mut self, name: &str) -> io::Result<()> {
            self.step(format!("sync {name}"))
        }

        fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
            self.step(format!("rename {from} {to}"))
        }

        fn sync_folder(&mut self) -> io::Result<()> {
            self.step("sync folder".to_owned())
        }
    }

    #[test]
    fn nothing_is_renamed_before_it_is_durable() {
        let mut folder = Noted::default();
        replace_in(&mut folder, "x", b"abc").unwrap();
        let expected = ["create x.new", "write x.new 3", "sync x.new", "rename x.new x", "sync folder"];
        assert_eq!(folder.done, expected);
        for step in 0..expected.len() {
            let mut folder = Noted { fails_at: Some(step), ..Noted::default() };
            assert!(replace_in(&mut folder, "x", b"abc").is_err(), "an error of step {step} is told");
            assert_eq!(folder.done, expected[..step], "nothing follows it");
        }
    }

    #[test]
    fn files_are_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("name");
        // What a crash left behind is in nobody's way.
        fs::write(folder.path().join("name.new"), b"a longer text that was cut short").unwrap();
        replace(&path, b"one", Access::Usual).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        replace(&path, b"two", Access::Owner).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        #[cfg(unix)]
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap()) & 0o777, 0o600);
        let names = || fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(names(), 0);
        assert!(replace(&folder.path().join("none/name"), b"", Access::Usual).is_err());
        create_folder(&folder.path().join("none/too/deep")).unwrap();
        create_folder(&folder.path().join("none/too")).unwrap();
        replace(&folder.path().join("none/name"), b"", Access::Usual).unwrap();
        let error = create_folder(&folder.path().join("none/name/x")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
        assert!(replace(Path::new("/"), b"", Access::Usual).is_err());
    }
}
