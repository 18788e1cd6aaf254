"""Where a request says which model it is for. Pure: a head in, a way to read the body out.

The rule: the body is looked into only as its head says, and is never taken apart. A name in the body comes before one
in the query, which is for requests without one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from vllm_chill.core.call import is_encoded, model_of, says_json
from vllm_chill.core.model_search import FormSearch, JsonSearch, Search

_FORM = re.compile(r"\s*multipart/form-data\s*(;.*)", re.IGNORECASE)
_BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))', re.IGNORECASE)
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Naming:
    """How one request names its model. `in_query` is what its query says; `boundary` is set if its body is a form,
    `is_json` if that is said to be JSON, `opaque` if it cannot be looked into.
    """

    in_query: str | None = None
    boundary: bytes | None = None
    is_json: bool = False
    opaque: bool = False

    def model(self, body: bytes) -> str | None:
        """The model that a request with this body names; None if it names none. Raises as core.call.read_call does."""
        if not body or self.opaque:
            return self.in_query
        if self.boundary is None:
            return model_of(body, is_json=self.is_json) or self.in_query
        search = FormSearch(self.boundary)
        search.feed(body)
        return search.model or self.in_query

    def search(self) -> Search | None:
        """A search in the body, for one that comes in pieces; None if there is nothing to be found in it."""
        if self.opaque:
            return None
        if self.boundary is not None:
            return FormSearch(self.boundary)
        return JsonSearch(is_json=self.is_json)


def naming_of(target: str, content_type: str | None, content_encoding: str | None = None) -> Naming:
    """How a request to this target (its path with its query) names its model."""
    query = target.partition("?")[2]
    in_query = dict(reversed(parse_qsl(query))).get("model") if "model" in query else None
    form = _FORM.match(content_type) if content_type is not None else None
    found = _BOUNDARY.search(form[1]) if form is not None else None
    boundary = None if found is None else (found[2] or _ESCAPE.sub(r"\1", found[1]))
    return Naming(
        in_query,
        boundary.encode("utf-8", "replace") if boundary is not None else None,
        is_json=says_json(content_type),
        opaque=is_encoded(content_encoding) or (form is not None and boundary is None),
    )
