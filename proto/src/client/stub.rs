//! The generated clients, with the bounds of messages.

use tonic::transport::Channel;

use crate::limits::{ANSWER_BYTES_MAX, MESSAGE_BYTES_MAX};
use crate::v1::cluster_client::ClusterClient;
use crate::v1::key_value_client::KeyValueClient;

pub(super) fn key_value(channel: Channel) -> KeyValueClient<Channel> {
    KeyValueClient::new(channel)
        .max_decoding_message_size(ANSWER_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

pub(super) fn cluster(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}
