//! `put KEY [VALUE]`, the value from standard input when it is not an argument.
use super::bytes_of;
use crate::ctl::connect::Client;
use crate::ctl::failure::Failure;
use crate::ctl::printer::Printer;
use crate::lease::parse_lease_id;
use bytes::Bytes;
use clap::Args;
use std::ffi::OsString;
use std::io::Read;
use sternpost_server::wire::etcdserverpb::PutRequest;

#[derive(Args)]
pub(crate) struct PutOptions {
    /// Lease id (in hexadecimal) to attach to the key
    #[arg(long, default_value = "0")]
    lease: String,
    /// Return the previous key-value pair
    #[arg(long)]
    prev_kv: bool,
    /// Update the key using its current value
    #[arg(long)]
    ignore_value: bool,
    /// Update the key using its current lease
    #[arg(long)]
    ignore_lease: bool,
    /// Key, and value; without the value it is read from standard input
    #[arg(value_name = "KEY [VALUE]")]
    arguments: Vec<OsString>,
}

impl PutOptions {
    /// A line of a transaction cannot read its value from standard input, from where the transaction comes.
    pub(super) fn request(self, input: Option<&mut dyn Read>) -> Result<PutRequest, Failure> {
        const USAGE: &str = "put command needs 1 argument and input from stdin or 2 arguments";
        let mut arguments = self.arguments.into_iter();
        let key = arguments.next().ok_or_else(|| Failure::bad_arguments(USAGE))?;
        let value = match arguments.next() {
            Some(_) if self.ignore_value => {
                let message = "put command needs only 1 argument when 'ignore-value' is set";
                return Err(Failure::bad_arguments(message));
            }
            Some(value) => bytes_of(value),
            None if self.ignore_value => Bytes::new(),
            None => input.and_then(value_from).ok_or_else(|| Failure::bad_arguments(USAGE))?,
        };
        let lease = parse_lease_id(&self.lease).map_err(|error| {
            Failure::bad_arguments(format!("bad lease ID ({error}), expecting ID in Hex"))
        })?;
        Ok(PutRequest {
            key: bytes_of(key),
            value,
            lease,
            prev_kv: self.prev_kv,
            ignore_value: self.ignore_value,
            ignore_lease: self.ignore_lease,
        })
    }
}

/// Everything that is there to be read; nothing when that is empty or unreadable.
fn value_from(input: &mut dyn Read) -> Option<Bytes> {
    let mut value = Vec::new();
    input.read_to_end(&mut value).ok()?;
    (!value.is_empty()).then(|| value.into())
}

pub(crate) async fn put(client: &Client, mut printer: Printer, options: PutOptions) -> Result<(), Failure> {
    let request = options.request(Some(&mut std::io::stdin().lock()))?;
    let mut kv = client.kv().await?;
    client.check_size(&request)?;
    let response = client.call(kv.put(request)).await?;
    printer.put(&response)?;
    printer.flush()
}
