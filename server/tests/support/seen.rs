//! Which methods and fields the cases have shown.

use std::collections::BTreeSet;

use prost_reflect::{DynamicMessage, MethodDescriptor, Value};

/// Full names: `etcdserverpb.KV/Range`, `etcdserverpb.RangeRequest.key`.
#[derive(Default)]
pub struct Seen(pub BTreeSet<String>);

impl Seen {
    /// It was asked.
    pub fn method(&mut self, method: &MethodDescriptor) {
        self.0.insert(format!("{}/{}", method.parent_service().full_name(), method.name()));
    }

    /// All its fields that are not zero, below it too, but for those that a step does not compare.
    pub fn message(&mut self, message: &DynamicMessage, any: &BTreeSet<String>) {
        for (field, value) in message.fields().filter(|(field, _)| !any.contains(field.name())) {
            self.0.insert(field.full_name().to_owned());
            match value {
                Value::Message(inner) => self.message(inner, any),
                Value::List(list) => {
                    for inner in list.iter().filter_map(Value::as_message) {
                        self.message(inner, any);
                    }
                }
                _ => {}
            }
        }
    }
}
