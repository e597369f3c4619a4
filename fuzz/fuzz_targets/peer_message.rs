//! A message of a peer, and its greeting.

#![no_main]

use kv_core::message::{Hello, Message};
use kv_proto::peer::Joining;
use kv_proto::v1;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::decode(bytes) {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
    if let Some(hello) = v1::Hello::decode(bytes).ok().and_then(|wire| Hello::try_from(wire).ok()) {
        assert_eq!(Hello::try_from(v1::Hello::from(&hello)), Ok(hello));
    }
    if let Some(joining) = v1::JoinRequest::decode(bytes).ok().and_then(|wire| Joining::try_from(wire).ok()) {
        assert_eq!(Joining::try_from(v1::JoinRequest::from(joining.clone())), Ok(joining));
    }
    // What is said before anything is proven; what the server makes of it is a property beside `kv-node/src/trust/proof.rs`.
    drop((v1::PeerGreeting::decode(bytes), v1::PeerChallenge::decode(bytes)));
    drop((v1::PeerProofs::decode(bytes), v1::PeerVerdict::decode(bytes)));
});
