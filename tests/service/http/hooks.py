"""What schemathesis cannot know of the interface: it loads this file (SCHEMATHESIS_HOOKS).

KEYLESS  in the environment: the service has no keys, so calls without one are welcome.
CHECKPOINT  the folder of a registered model, to upload as another one and to activate.
"""

import itertools
import os
import uuid
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import strategies as st
from schemathesis.transport.serialization import Binary, serialize_binary

from service.gallery.fields import PRINTABLE, encode_cursor
from tests.service.walkers import walk

WALK = walk(1, frames=30)
PERSON = "person-1"
_NUMBERS = itertools.count(1)  # of galleries that are made
_IMPORT = "/galleries/{gallery}/import"
_OF_WALKS = {
    **dict.fromkeys(("/enroll", "/identify", "/verify", "/galleries/{gallery}/cohort"), "sequence"),
    "/jobs/footage": "footage",
}
JSON = ('{"view": "090"}', "{}", '{"view": null, "camera": 2.5, "indoors": true}')

schemathesis.openapi.format(
    "cursor", st.sampled_from(["a", "person-1", "zz"]).map(lambda key: str(encode_cursor(key)))
)


@schemathesis.serializer("application/zip")
def as_it_is(context: Any, value: Any) -> Any:
    """A file is the body itself."""
    return serialize_binary(value)


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Without keys nothing asks for one; and the generator knows no classes of Unicode."""
    if os.environ.get("KEYLESS"):
        for operations in raw_schema["paths"].values():
            for operation in operations.values():
                operation.pop("security", None)
    _spell_out(raw_schema)


def _spell_out(schema: Any) -> None:
    if isinstance(schema, list):
        for item in schema:
            _spell_out(item)
    elif isinstance(schema, dict):
        if schema.get("pattern") == PRINTABLE:
            schema["pattern"] = "^[ -~]{1,64}$"
        for item in schema.values():
            _spell_out(item)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Have good requests mean something, and no stream of events go on for ever."""
    good = case.meta and not case.meta.generation.mode.is_negative
    if good and case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid.uuid4())  # another request took the same
    if good and isinstance(case.body, dict) and case.path in _OF_WALKS:
        _make_sense_of(case.body, case.path)
        case._sync_validated_hashes()  # else it takes bytes for a violation of the schema
    if good and isinstance(case.body, dict) and "weights" in case.body:
        folder = Path(os.environ["CHECKPOINT"])
        case.body["weights"] = (folder / "weights.safetensors").read_bytes()
        case.body["card"] = (folder / "card.json").read_bytes()
        case._sync_validated_hashes()
    if good and case.path == "/models/{name}/activate":
        case.path_parameters["name"] = Path(os.environ["CHECKPOINT"]).name
        case.body = {"gallery": "default"}
        for job in _send(case, "GET", "/jobs?status=queued&limit=500").json()["items"]:
            if job["type"] == "reindex":  # it waits for a worker, and until then is in the way
                _send(case, "POST", f"/jobs/{job['id']}/cancel")
        case._record_starting_state()
    if good and case.path == _IMPORT and case.method.upper() == "PUT":
        case.body = Binary(_send(case, "GET", "/galleries/default/export").content)
        if case.path_parameters["gallery"] != "default":  # else a conflict
            case.path_parameters["gallery"] = f"import-{next(_NUMBERS)}"
        case._record_starting_state()
    erased = case.method.upper() == "DELETE" and case.path == "/galleries/{gallery}"
    if erased and case.path_parameters.get("gallery") == "default":
        # It is there again at once, as documented, which would be taken for a fault.
        case.path_parameters["gallery"] = "nobody-s"
    if case.path == "/jobs/{job_id}/events" and case.method.upper() == "GET":
        job = str(case.path_parameters.get("job_id"))
        if job.replace("-", "").isalnum():
            # A job that has ended already, or never was, refuses: its stream ends anyway.
            _send(case, "POST", f"/jobs/{job}/cancel")


def _send(case: Any, method: str, path: str) -> httpx.Response:
    base = case.operation.schema.get_base_url()
    key = {"Authorization": f"Bearer {os.environ['KEY']}"} if "KEY" in os.environ else {}
    return httpx.request(method, f"{base.rstrip('/')}{path}", headers=key, timeout=10)


def _make_sense_of(form: dict[str, Any], path: str) -> None:
    """A walk where any bytes would be, and JSON for any text, of a person who is enrolled."""
    field = _OF_WALKS[path]
    sent = form.get(field)
    form[field] = WALK if field == "footage" else [WALK for _ in sent or [WALK]]
    for name in ("gallery", "walk", "input", "track"):  # made up, they do not exist or fit
        form.pop(name, None)
    if path == "/verify":
        form["subject_id"] = PERSON
    for name in {"metadata", "filter"} & set(form):
        form[name] = JSON[len(str(form[name])) % len(JSON)]
