//! How a cell lies on the medium: a format byte, a checksum, and the postcard encoding of what is inside.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | the kind of the cell and the format of that kind: `FORMAT_AVAILABLE`, `FORMAT_CONSISTENT` |
//! | 4 | the low half of XXH3 (64 bits, seeded with the format) over all bytes behind it, little-endian |
//! | rest | of an available record: context, own actor, retired requests, number of siblings, siblings, each in postcard; of a register of a consistent keyspace: the register in postcard |
//!
//! A version is written at the stamp of its request or soon after it, so what is stored of the timestamp is the difference.
//! An actor takes up to thirty bytes and stands in the context anyway, so siblings and the own actor name it by its
//! place there.
//!
//! Each kind has formats of its own, and no two kinds share one. So a cell of one kind is never read as one of another,
//! and the kind takes no byte beside the format.

use bytes::Bytes;
use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Footprint, StorageKey};
use crate::cell::Cell;
use crate::error::StorageError;
use crate::register::Register;
use crate::types::{RequestId, WallTime};
use crate::version::{Actor, Context, Dot, Hlc, Record, Retired, Version};

/// The format of available records: the one that this build writes, and the only one that it reads.
pub const FORMAT_AVAILABLE: u8 = 2;

/// The format of registers, likewise.
pub const FORMAT_CONSISTENT: u8 = 65;

/// Format byte and checksum.
const HEADER: usize = 1 + 4;

/// The most bytes of an actor with its counter, and of a sibling without its value (varints at full length).
const ACTOR_BYTES_MAX: usize = 40;
const SIBLING_BYTES_MAX: usize = 72;

/// The most bytes of a register without its value: three ballots, a request and two times.
const REGISTER_BYTES_MAX: usize = 180;

/// What retired requests take: their length and a few clients, and an id of one of these. If they take more, the vector grows.
const RETIRED_BYTES_MIN: usize = 3;
const RETIRED_BYTES: usize = 20;

/// A cell as a node stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The actor that this node may go on using for this instance of an available record (rule A1). Local: never
    /// replicated.
    pub own: Option<Actor>,
    /// The cell.
    pub cell: Cell,
}

/// Bytes that are not a stored cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    /// There is not even a header.
    #[error("{found} bytes are too few for a record, whose header takes {HEADER}")]
    TooShort {
        /// The length found.
        found: usize,
    },
    /// Another build wrote it, or it is of a kind that this build does not know.
    #[error(
        "it has record format {found}, this build reads formats {FORMAT_AVAILABLE} (of available keyspaces) and {FORMAT_CONSISTENT} (of \
         consistent ones); read it with the build that wrote it"
    )]
    Format {
        /// The format byte found.
        found: u8,
    },
    /// The bytes are not those that were written.
    #[error("its checksum is {found:08x}, but its bytes give {computed:08x}")]
    Checksum {
        /// The checksum in the header.
        found: u32,
        /// The checksum of the bytes behind it.
        computed: u32,
    },
    /// The checksum is right, but what it protects is not a record.
    #[error("its content is not a record: {reason}")]
    Payload {
        /// What is wrong.
        reason: &'static str,
    },
}

impl StoredError {
    /// The error of a read that found this at `key`.
    #[must_use]
    pub fn at(&self, key: &StorageKey) -> StorageError {
        StorageError::Corrupt { what: format!("the record at {key}"), reason: self.to_string() }
    }
}

/// The own actor: none, the one at a place in the context, or one that the context has not seen.
#[derive(Serialize, Deserialize)]
enum OwnForm {
    None,
    Seen(u32),
    Unseen(Actor),
}

/// A version whose actor is named by its place in the context. `V` is `&Bytes` for writing and `Bytes` for reading.
#[derive(Serialize, Deserialize)]
struct VersionForm<V> {
    actor: u32,
    counter: u64,
    request: RequestId,
    /// How far `written` is behind the request's stamp.
    later: u64,
    expires: Option<WallTime>,
    value: Option<V>,
}

impl Stored {
    /// What stands in the space of missed-write markers: the key says all.
    #[must_use]
    pub fn marker() -> Self {
        Self { own: None, cell: Cell::Available(Record::default()) }
    }

    /// The bytes for the medium. Each value is copied once.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        debug_assert!(self.cell.is_valid(), "only valid cells are stored: {:?}", self.cell);
        match &self.cell {
            Cell::Available(record) => encode_record(self.own, record),
            Cell::Consistent(register) => encode_register(register),
        }
    }

    /// How many bytes a cell takes on the medium of a node that keeps nothing local with it.
    #[must_use]
    pub fn encoded_len(cell: &Cell) -> usize {
        let mut out = postcard::Serializer { output: Count(HEADER) };
        match cell {
            Cell::Available(record) => write(&mut out, None, record),
            Cell::Consistent(register) => {
                let written = register.serialize(&mut out);
                debug_assert!(written.is_ok(), "{written:?}");
            }
        }
        out.output.0
    }

    /// Reads what `encode` wrote. Each value is copied once, into memory of its own, so that keeping a cell does not
    /// keep the block or frame that it came in.
    ///
    /// # Errors
    /// If the bytes are anything else; no input panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoredError> {
        let Some((header, payload)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(StoredError::TooShort { found: bytes.len() });
        };
        let [format, check @ ..] = *header;
        if !matches!(format, FORMAT_AVAILABLE | FORMAT_CONSISTENT) {
            return Err(StoredError::Format { found: format });
        }
        let (found, computed) = (u32::from_le_bytes(check), checksum(format, payload));
        if found != computed {
            return Err(StoredError::Checksum { found, computed });
        }
        if format == FORMAT_CONSISTENT { decode_register(payload) } else { decode_record(payload) }
    }

    /// What the cell adds to the statistics at `key`, with the length of its encoding.
    #[must_use]
    pub fn footprint(&self, key: &StorageKey, encoded_len: usize) -> Footprint {
        if self.cell.is_blank() {
            return Footprint::of_blank(key, encoded_len);
        }
        Footprint::of_cell(key, self.cell.has_value(), encoded_len, self.cell.digest())
    }
}

fn encode_record(own: Option<Actor>, record: &Record) -> Bytes {
    let size_max = HEADER
        + 2 * ACTOR_BYTES_MAX
        + record.context.len() * ACTOR_BYTES_MAX
        + record.siblings.len() * SIBLING_BYTES_MAX
        + RETIRED_BYTES_MIN
        + record.retired.len() * RETIRED_BYTES
        + record.value_bytes();
    let mut bytes = Vec::with_capacity(size_max);
    bytes.extend_from_slice(&[FORMAT_AVAILABLE, 0, 0, 0, 0]);
    let mut out = postcard::Serializer { output: Output(bytes) };
    write(&mut out, own, record);
    sealed(FORMAT_AVAILABLE, out.output.0)
}

fn encode_register(register: &Register) -> Bytes {
    let mut bytes = Vec::with_capacity(HEADER + REGISTER_BYTES_MAX + register.value().map_or(0, Bytes::len));
    bytes.extend_from_slice(&[FORMAT_CONSISTENT, 0, 0, 0, 0]);
    let mut out = postcard::Serializer { output: Output(bytes) };
    let written = register.serialize(&mut out);
    debug_assert!(written.is_ok(), "{written:?}");
    sealed(FORMAT_CONSISTENT, out.output.0)
}

fn decode_register(payload: &[u8]) -> Result<Stored, StoredError> {
    let mut rest = payload;
    let register: Register = take(&mut rest)?;
    if !rest.is_empty() {
        return Err(StoredError::Payload { reason: "bytes follow the register" });
    }
    if !register.is_valid() {
        return Err(StoredError::Payload { reason: "it has accepted what it has not promised" });
    }
    Ok(Stored { own: None, cell: Cell::Consistent(register) })
}

/// Puts the checksum where it belongs.
fn sealed(format: u8, mut bytes: Vec<u8>) -> Bytes {
    let check = checksum(format, &bytes[HEADER..]).to_le_bytes();
    bytes[1..HEADER].copy_from_slice(&check);
    Bytes::from(bytes)
}

fn decode_record(payload: &[u8]) -> Result<Stored, StoredError> {
    let mut rest = payload;
    let context: Context = take(&mut rest)?;
    let own: OwnForm = take(&mut rest)?;
    let retired: Retired = take(&mut rest)?;
    let count: usize = take(&mut rest)?;
    // A sibling takes more than a byte, so a length that lies cannot make this allocate more than it was given.
    let mut siblings = Vec::with_capacity(count.min(rest.len()));
    for _ in 0..count {
        let form: VersionForm<Bytes> = take(&mut rest)?;
        siblings.push(version(form, &context)?);
    }
    if !rest.is_empty() {
        return Err(StoredError::Payload { reason: "bytes follow the record" });
    }
    let own = match own {
        OwnForm::None => None,
        OwnForm::Seen(place) => Some(actor(place, &context)?),
        OwnForm::Unseen(actor) => Some(actor),
    };
    let record = Record { context, siblings, retired };
    if !record.is_valid() {
        let reason = "its siblings are out of order, its context misses one, or one was replaced";
        return Err(StoredError::Payload { reason });
    }
    Ok(Stored { own, cell: Cell::Available(record) })
}

fn write<F: Flavor>(out: &mut postcard::Serializer<F>, own: Option<Actor>, record: &Record) {
    let Record { context, siblings, retired } = record;
    // Neither output can fail, and the types hold nothing that postcard refuses.
    let written = (|| {
        context.serialize(&mut *out)?;
        own_form(own, context).serialize(&mut *out)?;
        retired.serialize(&mut *out)?;
        siblings.len().serialize(&mut *out)?;
        siblings.iter().try_for_each(|sibling| version_form(sibling, context).serialize(&mut *out))
    })();
    debug_assert!(written.is_ok(), "{written:?}");
}

fn checksum(format: u8, payload: &[u8]) -> u32 {
    let [a, b, c, d, ..] = xxh3_64_with_seed(payload, u64::from(format)).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn take<'a, T: Deserialize<'a>>(rest: &mut &'a [u8]) -> Result<T, StoredError> {
    let (value, behind) = postcard::take_from_bytes(rest).map_err(|error| StoredError::Payload {
        reason: match error {
            postcard::Error::DeserializeUnexpectedEnd => "it is cut short",
            _ => "a field does not decode",
        },
    })?;
    *rest = behind;
    Ok(value)
}

/// The place of an actor in the context. A place that no context has stands for an actor that is missing there; the
/// record is then invalid, and reading it says so.
fn place(actor: Actor, context: &Context) -> Option<u32> {
    context.position(actor).and_then(|position| u32::try_from(position).ok())
}

fn actor(place: u32, context: &Context) -> Result<Actor, StoredError> {
    let position = usize::try_from(place).ok();
    position
        .and_then(|position| context.actor_at(position))
        .ok_or(StoredError::Payload { reason: "it names an actor that its context has not seen" })
}

fn own_form(own: Option<Actor>, context: &Context) -> OwnForm {
    match own {
        None => OwnForm::None,
        Some(own) => place(own, context).map_or(OwnForm::Unseen(own), OwnForm::Seen),
    }
}

fn version_form<'a>(version: &'a Version, context: &Context) -> VersionForm<&'a Bytes> {
    let Version { dot, written, request, expires, value } = version;
    VersionForm {
        actor: place(dot.actor, context).unwrap_or(u32::MAX),
        counter: dot.counter,
        request: *request,
        later: written.0.wrapping_sub(request.stamp.0),
        expires: *expires,
        value: value.as_ref(),
    }
}

fn version(form: VersionForm<Bytes>, context: &Context) -> Result<Version, StoredError> {
    let VersionForm { actor: place, counter, request, later, expires, value } = form;
    let written = Hlc(request.stamp.0.wrapping_add(later));
    Ok(Version { dot: Dot { actor: actor(place, context)?, counter }, written, request, expires, value })
}

/// Postcard's output into a vector, values copied as a whole.
struct Output(Vec<u8>);

impl Flavor for Output {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// Postcard's output, counted only.
struct Count(usize);

impl Flavor for Count {
    type Output = usize;

    fn try_push(&mut self, _: u8) -> postcard::Result<()> {
        self.0 += 1;
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0 += bytes.len();
        Ok(())
    }

    fn finalize(self) -> postcard::Result<usize> {
        Ok(self.0)
    }
}
