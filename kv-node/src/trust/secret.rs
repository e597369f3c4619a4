//! The file with the secret of a cluster.
//!
//! A line is a secret; the first is the newest. While a secret is changed the file has two lines, so that nodes that know
//! the new one and nodes that know only the old one talk. Lines that are empty or begin with `#` say nothing.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use kv_core::small_file::{self, Access};
use ring::hmac;

/// The fewest and the most characters of a secret.
const CHARACTERS_MIN: usize = 32;
const CHARACTERS_MAX: usize = 256;

/// The most secrets in a file: the present one and the one before, and two more for who changes it twice at once.
pub(super) const SECRETS_MAX: usize = 4;

/// The longest file, in bytes.
const FILE_BYTES_MAX: usize = 8 * 1024;

/// Random bytes of a secret that is made here.
const RANDOM_BYTES: usize = 32;

/// Who may read or write the file, beside its owner and its owner's group.
const FOR_OTHERS: u32 = 0o007;
const WRITABLE_BY_GROUP: u32 = 0o020;

/// One secret, ready to prove that it is known.
#[derive(Clone)]
pub struct Secret(pub(super) hmac::Key);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    pub(super) fn new(text: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes()))
    }
}

/// Reads the secrets of a file, the newest first.
///
/// # Errors
/// With the problem, the limit and the remedy.
pub fn read(path: &Path) -> Result<Vec<Secret>, String> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => format!(
            "{shown} does not exist; copy it from a node of the cluster, whose founding node has made it, and let only this \
             node's user read it (chmod 600)"
        ),
        ErrorKind::PermissionDenied => {
            format!("{shown} cannot be read: {error}; let this node's user read it (chown, chmod 600)")
        }
        _ => format!("{shown} cannot be read: {error}; name the file with the cluster's secret"),
    };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(format!("{shown} is not a file; name the file with the cluster's secret"));
    }
    check_access(path, &metadata)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    secrets_in(&bytes).map_err(|problem| format!("{shown} {problem}"))
}

/// Makes a file with a new secret that only its owner can read, durably.
///
/// # Errors
/// With the problem and the remedy.
pub fn make(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(|error| format!("{shown} cannot be made: no random numbers: {error}"))?;
    let mut text = String::with_capacity(2 * RANDOM_BYTES + 1);
    for byte in random {
        write!(text, "{byte:02x}").map_err(|error| format!("{shown} cannot be made: {error}"))?;
    }
    text.push('\n');
    // What an interrupted start has left could be readable for others.
    if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
        drop(fs::remove_file(path.with_file_name(small_file::name_before(name))));
    }
    small_file::replace(path, text.as_bytes(), Access::Owner).map_err(|error| {
        format!("{shown} cannot be made: {error}; name a place in a folder that exists and where this node may write")
    })
}

#[cfg(unix)]
fn check_access(path: &Path, metadata: &fs::Metadata) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let mode = metadata.mode();
    let shown = path.display();
    if mode & FOR_OTHERS != 0 {
        return Err(format!(
            "{shown} is open to every user of this machine (mode {:03o}), so what it holds may be known; chmod 600 it, and \
             make a new secret if others may have read it",
            mode & 0o777
        ));
    }
    if mode & WRITABLE_BY_GROUP != 0 {
        return Err(format!("{shown} can be changed by its group (mode {:03o}); chmod 600 it", mode & 0o777));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_access(_: &Path, _: &fs::Metadata) -> Result<(), String> {
    Ok(())
}

fn secrets_in(bytes: &[u8]) -> Result<Vec<Secret>, String> {
    const REMEDY: &str = "copy the file from another node, or make a secret with: openssl rand -hex 32";
    if bytes.len() > FILE_BYTES_MAX {
        return Err(format!("has more than {FILE_BYTES_MAX} bytes, so it is not a file with secrets; {REMEDY}"));
    }
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii() && !text.contains('\0'));
    let Some(text) = text else { return Err(format!("is not text; {REMEDY}")) };
    let mut secrets = Vec::new();
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    for (at, line) in lines {
        let number = at + 1;
        if !line.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "has a blank or a control character within line {number}; a secret has none; {REMEDY}"
            ));
        }
        if !(CHARACTERS_MIN..=CHARACTERS_MAX).contains(&line.len()) {
            return Err(format!(
                "has a secret of {} characters in line {number}, {CHARACTERS_MIN} to {CHARACTERS_MAX} are allowed; {REMEDY}",
                line.len()
            ));
        }
        if secrets.len() >= SECRETS_MAX {
            return Err(format!("has more than {SECRETS_MAX} secrets; keep the newest one and the one before"));
        }
        secrets.push(Secret::new(line));
    }
    if secrets.is_empty() {
        return Err(format!("holds no secret; {REMEDY}"));
    }
    Ok(secrets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    fn with_mode(path: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_secret_that_is_made_can_be_read_by_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(folder.path().join("secret.new"), "left behind").unwrap();
        make(&path).unwrap();
        assert_eq!(read(&path).unwrap().len(), 1);
        let first = fs::read_to_string(&path).unwrap();
        assert_eq!(first.len(), 65);
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        }
        make(&path).unwrap();
        assert_ne!(fs::read_to_string(&path).unwrap(), first, "each is another one");
        let error = make(&folder.path().join("none/secret")).unwrap_err();
        assert!(error.contains("none/secret cannot be made") && error.contains("folder that exists"), "{error}");
    }

    #[test]
    fn files_that_hold_no_secret_say_why() {
        let long = "x".repeat(257);
        let good = "g".repeat(32);
        let five = format!("{good}\n").repeat(5);
        let cases: [(&[u8], &str); 9] = [
            (b"", "holds no secret"),
            (b"\n# nothing yet\n\n", "holds no secret"),
            (b"short\n", "5 characters in line 1, 32 to 256"),
            (long.as_bytes(), "257 characters"),
            (b"\xff\xfe\x00\x01", "is not text"),
            (b"0123456789abcdef0123456789abcdef\0\0", "is not text"),
            (b"0123456789abcdef 0123456789abcdef", "a blank or a control character within line 1"),
            (five.as_bytes(), "more than 4 secrets"),
            (&[b'a'; FILE_BYTES_MAX + 1], "more than 8192 bytes"),
        ];
        for (bytes, words) in cases {
            let error = secrets_in(bytes).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
        let both = format!("# the new one\n{good}\n\n  {good}x \r\n");
        assert_eq!(secrets_in(both.as_bytes()).unwrap().len(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn files_that_others_can_read_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        make(&path).unwrap();
        for (mode, words) in [(0o604, "every user"), (0o602, "every user"), (0o660, "its group")] {
            with_mode(&path, mode);
            let error = read(&path).unwrap_err();
            assert!(error.contains(words) && error.contains("chmod 600"), "{error}");
        }
        for mode in [0o600, 0o400, 0o640] {
            with_mode(&path, mode);
            read(&path).unwrap();
        }
        let missing = read(&folder.path().join("none")).unwrap_err();
        assert!(missing.contains("does not exist") && missing.contains("copy it from a node"), "{missing}");
        let error = read(folder.path()).unwrap_err();
        assert!(error.contains("is not a file"), "{error}");
    }
}
