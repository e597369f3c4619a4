//! The program as scripts see it: what it prints where, and how it exits. A file for each command or noun.

mod bar;
mod bench;
mod conditions;
mod events;
mod fault;
mod import_export;
mod info;
mod input;
mod keyspace;
mod node;
mod op;
mod pipes;
mod plan;
mod put_get;
mod repair;
mod ring;
mod scan;
mod script;
mod status;
mod support;
