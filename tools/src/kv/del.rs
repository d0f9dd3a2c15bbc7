//! `del KEY [RANGE_END]`.
use super::{bytes_of, from_key_range, prefix_range};
use crate::ctl::connect::Client;
use crate::ctl::failure::Failure;
use crate::ctl::printer::Printer;
use crate::ctl::quote::quote;
use bytes::Bytes;
use clap::Args;
use std::ffi::OsString;
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::DeleteRangeRequest;

/// Time to think again before a range is deleted that was not announced by `--range`; etcdctl's.
const SECOND_THOUGHTS: Duration = Duration::from_secs(2);

#[derive(Args)]
pub(crate) struct DelOptions {
    /// Delete keys with this prefix
    #[arg(long)]
    prefix: bool,
    /// Return the deleted key-value pairs
    #[arg(long)]
    prev_kv: bool,
    /// Delete this key and all behind it
    #[arg(long)]
    from_key: bool,
    /// Delete a range of keys without waiting two seconds
    #[arg(long)]
    range: bool,
    /// Key, and the end of the range
    #[arg(value_name = "KEY [RANGE_END]")]
    arguments: Vec<OsString>,
}

impl DelOptions {
    pub(super) fn request(self) -> Result<DeleteRangeRequest, Failure> {
        let mut arguments = self.arguments.into_iter();
        let (Some(key), end, None) = (arguments.next(), arguments.next(), arguments.next()) else {
            let message = "del command needs one argument as key and an optional argument as range_end";
            return Err(Failure::bad_arguments(message));
        };
        if self.prefix && self.from_key {
            let message = "`--prefix` and `--from-key` cannot be set at the same time, choose one";
            return Err(Failure::bad_arguments(message));
        }
        let key = bytes_of(key);
        let (key, range_end) = match end {
            Some(_) if self.prefix || self.from_key => {
                let message =
                    "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";
                return Err(Failure::bad_arguments(message));
            }
            Some(end) => (key, bytes_of(end)),
            None if self.prefix => prefix_range(key),
            None if self.from_key => from_key_range(key),
            None => (key, Bytes::new()),
        };
        Ok(DeleteRangeRequest { key, range_end, prev_kv: self.prev_kv })
    }
}

pub(crate) async fn del(client: &Client, mut printer: Printer, options: DelOptions) -> Result<(), Failure> {
    let is_announced = options.range || options.prefix || options.from_key;
    let request = options.request()?;
    if !is_announced && !request.range_end.is_empty() {
        let (key, end) = (quote(&request.key), quote(&request.range_end));
        eprintln!(
            "Warning: Keys between {key} and {end} will be deleted. Please interrupt the command within next 2 \
             seconds to cancel. You can provide `--range` flag to avoid the delay."
        );
        tokio::time::sleep(SECOND_THOUGHTS).await;
    }
    let mut kv = client.kv().await?;
    client.check_size(&request)?;
    let response = client.call(kv.delete_range(request)).await?;
    printer.del(&response)?;
    printer.flush()
}
