//! The description of our own dialect in OpenRPC, made from the rows that its calls are understood
//! by.

use serde_json::{Value, json};

use super::methods::{METHODS, Method, Param, Shape, Type};

/// The document of `GET /v1/openrpc.json`.
pub fn document() -> Value {
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "orlop",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Storage repositories and virtual disk images. POST /v1, JSON-RPC 2.0, \
                parameters by name. The code of an error is the number of the Storage Manager \
                API's error code; its data name it and say what, where, why, and what to do.",
        },
        "methods": METHODS.iter().map(described).collect::<Vec<_>>(),
    })
}

fn described(method: &Method) -> Value {
    let params = method.params.iter().map(|Param { name, of, required, about }| {
        json!({
            "name": name,
            "required": required,
            "description": about,
            "schema": schema_of(*of),
        })
    });
    json!({
        "name": method.name,
        "summary": method.about,
        "paramStructure": "by-name",
        "params": params.collect::<Vec<_>>(),
        "result": {"name": "result", "schema": result_schema(method.result)},
    })
}

fn schema_of(of: Type) -> Value {
    match of {
        Type::Uuid => json!({"type": "string", "format": "uuid"}),
        Type::Text => json!({"type": "string"}),
        Type::Count => json!({"type": "integer", "minimum": 0}),
        Type::Flag => json!({"type": "boolean"}),
        Type::Texts => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Type::Choice(words) => json!({"type": "string", "enum": words}),
    }
}

fn object(members: &[(&str, Value)]) -> Value {
    let names: Vec<_> = members.iter().map(|(name, _)| *name).collect();
    let properties: serde_json::Map<String, Value> =
        members.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({"type": "object", "required": names, "properties": properties})
}

fn list(items: &Value) -> Value {
    json!({"type": "array", "items": items})
}

fn result_schema(shape: Shape) -> Value {
    let text = || schema_of(Type::Text);
    let uuid = || schema_of(Type::Uuid);
    let texts = || schema_of(Type::Texts);
    match shape {
        Shape::Nothing => json!({"type": "null"}),
        Shape::ContentType => object(&[("content_type", text())]),
        Shape::Vdi => object(&[("vdi", uuid())]),
        Shape::Access => {
            let read_only = schema_of(Type::Flag);
            object(&[("path", text()), ("nbd_uri", text()), ("read_only", read_only)])
        }
        Shape::Listing => listing_schema(),
        Shape::Collected => object(&[
            ("removed", list(&uuid())),
            ("merged", list(&uuid())),
            ("left", list(&object(&[("vdi", uuid()), ("why", text())]))),
            ("space_before", schema_of(Type::Count)),
            ("space_after", schema_of(Type::Count)),
        ]),
        Shape::Srs => {
            let sr = object(&[
                ("sr", uuid()),
                ("driver", text()),
                ("config", texts()),
                ("label", text()),
                ("place", text()),
                ("vdis", list(&uuid())),
            ]);
            object(&[("srs", list(&sr))])
        }
    }
}

fn listing_schema() -> Value {
    let (text, count, flag) =
        (schema_of(Type::Text), schema_of(Type::Count), schema_of(Type::Flag));
    let uuid = schema_of(Type::Uuid);
    let some_uuid = json!({"type": ["string", "null"], "format": "uuid"});
    let some_count = json!({"type": ["integer", "null"], "minimum": 0});
    let vdi = object(&[
        ("uuid", uuid.clone()),
        ("size", count.clone()),
        ("utilisation", count.clone()),
        ("locked", flag.clone()),
        ("shareable", flag.clone()),
        ("read_only", flag.clone()),
        ("parent", some_uuid.clone()),
        ("strays", list(&text)),
        ("format", text.clone()),
        ("label", text.clone()),
        ("description", text.clone()),
        ("properties", schema_of(Type::Texts)),
        ("snapshot_of", some_uuid.clone()),
        ("snapshot_time", some_count.clone()),
        ("created", some_count),
    ]);
    let finding = object(&[("name", text.clone()), ("problem", text.clone()), ("vdi", some_uuid)]);
    object(&[
        ("sr", uuid),
        ("label", text.clone()),
        ("description", text),
        ("physical_utilisation", count.clone()),
        ("virtual_allocation", count.clone()),
        ("physical_size", count),
        ("default_vdi_visibility", flag),
        ("vdis", list(&vdi)),
        ("hidden", list(&vdi)),
        ("findings", list(&finding)),
    ])
}
