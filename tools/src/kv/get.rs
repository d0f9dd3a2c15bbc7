//! `get KEY [RANGE_END]` with all of etcdctl's flags, `--stream` included.
use super::{bytes_of, from_key_range, prefix_range};
use crate::ctl::connect::Client;
use crate::ctl::failure::Failure;
use crate::ctl::flags;
use crate::ctl::printer::{Format, Printer};
use bytes::Bytes;
use clap::Args;
use std::ffi::OsString;
use sternpost_server::wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use sternpost_server::wire::etcdserverpb::{RangeRequest, RangeResponse};
use tonic::{Response, Status};

#[derive(Args)]
pub(crate) struct GetOptions {
    /// Linearizable (l) or serializable (s)
    #[arg(long, default_value = "l")]
    consistency: String,
    /// Order of results: ASCEND or DESCEND
    #[arg(long, default_value = "")]
    order: String,
    /// What to sort by: CREATE, KEY, MODIFY, VALUE or VERSION
    #[arg(long, default_value = "")]
    sort_by: String,
    /// Maximum number of results
    #[arg(long, default_value_t = 0, value_parser = flags::integer)]
    limit: i64,
    /// Get keys with this prefix
    #[arg(long)]
    prefix: bool,
    /// Get this key and all behind it
    #[arg(long)]
    from_key: bool,
    /// The revision to read at
    #[arg(long, default_value_t = 0, value_parser = flags::integer)]
    rev: i64,
    /// Get only the keys
    #[arg(long)]
    keys_only: bool,
    /// Get only the count (with `-w fields`)
    #[arg(long)]
    count_only: bool,
    /// Write only values (with `-w simple`)
    #[arg(long)]
    print_value_only: bool,
    /// Minimum create revision
    #[arg(long, default_value_t = 0, value_parser = flags::integer)]
    min_create_rev: i64,
    /// Maximum create revision
    #[arg(long, default_value_t = 0, value_parser = flags::integer)]
    max_create_rev: i64,
    /// Minimum modification revision
    #[arg(long, default_value_t = 0, value_parser = flags::integer)]
    min_mod_rev: i64,
    /// Maximum modification revision
    #[arg(long, default_value_t = 0, value_parser = flags::integer)]
    max_mod_rev: i64,
    /// Use the RangeStream call
    #[arg(long)]
    stream: bool,
    /// Key, and the end of the range
    #[arg(value_name = "KEY [RANGE_END]")]
    arguments: Vec<OsString>,
}

impl GetOptions {
    pub(super) fn request(self) -> Result<RangeRequest, Failure> {
        let mut arguments = self.arguments.into_iter();
        let Some(key) = arguments.next() else {
            let message = "get command needs one argument as key and an optional argument as range_end";
            return Err(Failure::bad_arguments(message));
        };
        if self.prefix && self.from_key {
            let message = "`--prefix` and `--from-key` cannot be set at the same time, choose one";
            return Err(Failure::bad_arguments(message));
        }
        if self.keys_only && self.count_only {
            let message = "`--keys-only` and `--count-only` cannot be set at the same time, choose one";
            return Err(Failure::bad_arguments(message));
        }
        let serializable = match self.consistency.as_str() {
            "s" => true,
            "l" => false,
            other => return Err(Failure::bad_feature(format!("unknown consistency flag {other:?}"))),
        };
        let key = bytes_of(key);
        let (key, range_end) = match arguments.next() {
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
        let sort_order = match self.order.to_uppercase().as_str() {
            "" => SortOrder::None,
            "ASCEND" => SortOrder::Ascend,
            "DESCEND" => SortOrder::Descend,
            _ => return Err(Failure::bad_feature(format!("bad sort order {}", self.order))),
        };
        let sort_target = match self.sort_by.to_uppercase().as_str() {
            "" | "KEY" => SortTarget::Key,
            "CREATE" => SortTarget::Create,
            "MODIFY" => SortTarget::Mod,
            "VALUE" => SortTarget::Value,
            "VERSION" => SortTarget::Version,
            _ => return Err(Failure::bad_feature(format!("bad sort target {}", self.sort_by))),
        };
        // The Go client asks for key order by not asking: it is the order without sorting.
        let sort_order = match (sort_target, sort_order) {
            (SortTarget::Key, SortOrder::Ascend) => SortOrder::None,
            (_, order) => order,
        };
        check_bounds("getMinCreateRev", self.min_create_rev, "getMaxCreateRev", self.max_create_rev)?;
        check_bounds("getMinModRev", self.min_mod_rev, "getMaxModRev", self.max_mod_rev)?;
        Ok(RangeRequest {
            key,
            range_end,
            limit: self.limit,
            revision: self.rev.max(0),
            sort_order: sort_order.into(),
            sort_target: sort_target.into(),
            serializable,
            keys_only: self.keys_only,
            count_only: self.count_only,
            min_mod_revision: self.min_mod_rev.max(0),
            max_mod_revision: self.max_mod_rev.max(0),
            min_create_revision: self.min_create_rev.max(0),
            max_create_revision: self.max_create_rev.max(0),
        })
    }
}

fn check_bounds(min_name: &str, min: i64, max_name: &str, max: i64) -> Result<(), Failure> {
    if max > 0 && min > max {
        return Err(Failure::bad_feature(format!("{min_name}(={min}) > {max_name}(={max})")));
    }
    Ok(())
}

pub(crate) async fn get(client: &Client, mut printer: Printer, options: GetOptions) -> Result<(), Failure> {
    let GetOptions { count_only, print_value_only, stream, .. } = options;
    let request = options.request()?;
    client.check_size(&request)?;
    let mut kv = client.kv().await?;
    let response = if stream {
        client
            .call(async {
                let mut chunks = kv.range_stream(request).await?.into_inner();
                let mut whole = RangeResponse::default();
                while let Some(chunk) = chunks.message().await? {
                    join(&mut whole, chunk.range_response.unwrap_or_default());
                }
                Ok::<_, Status>(Response::new(whole))
            })
            .await?
    } else {
        client.call(kv.range(request)).await?
    };
    if count_only && printer.format != Format::Fields {
        return Err(Failure::bad_arguments("--count-only is only for `--write-out=fields`"));
    }
    if print_value_only && printer.format != Format::Simple {
        return Err(Failure::bad_arguments("print-value-only is only for `--write-out=simple`"));
    }
    printer.value_only = print_value_only;
    printer.get(&response)?;
    printer.flush()
}

/// Puts a chunk of a streamed range behind what came before; header, count and more come with one of the chunks.
fn join(whole: &mut RangeResponse, chunk: RangeResponse) {
    whole.kvs.extend(chunk.kvs);
    whole.more |= chunk.more;
    whole.count = whole.count.max(chunk.count);
    if chunk.header.is_some() {
        whole.header = chunk.header;
    }
}
