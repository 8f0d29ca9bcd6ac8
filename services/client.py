"""A small synchronous client: the methods that the CLI uses, for scripts as well.

with Client("http://127.0.0.1:8740", key) as client:
    job = client.submit({"name": "demo", ...})
    client.steer(job["id"], weights={"accuracy": 0.8, "conciseness": 0.2})
"""

from __future__ import annotations

from typing import Any, BinaryIO, Self

import httpx

Document = dict[str, Any]


class ApiError(Exception):
    """The server refused, or there is none (status 0). Its text is one line for a person."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param


class Client:
    """One server and one key. Not for several threads at once."""

    def __init__(
        self, url: str, key: str, *, timeout_s: float = 30.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"},
            timeout=timeout_s,
            transport=transport,
            trust_env=False,  # a proxy for the outside world must not get the key of a local server
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, spec: Document, *, idempotency_key: str | None = None, validate_only: bool = False) -> Document:
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        params = {"validate_only": "true"} if validate_only else {}
        return self._call("POST", "/v1/jobs", json=spec, headers=headers, params=params)

    def jobs(self, *, after: str | None = None, limit: int = 100, status: str | None = None) -> Document:
        return self._call("GET", "/v1/jobs", params=_given(after=after, limit=limit, status=status))

    def all_jobs(self) -> list[Document]:
        """Every page of the list, newest first."""
        jobs: list[Document] = []
        while True:
            page = self.jobs(after=jobs[-1]["id"] if jobs else None)
            jobs += page["data"]
            if not page["has_more"]:
                return jobs

    def job(self, job_id: str) -> Document:
        return self._call("GET", f"/v1/jobs/{job_id}")

    def cancel(self, job_id: str) -> Document:
        return self._call("POST", f"/v1/jobs/{job_id}/cancel")

    def pause(self, job_id: str) -> Document:
        return self._call("POST", f"/v1/jobs/{job_id}/pause")

    def resume(self, job_id: str) -> Document:
        return self._call("POST", f"/v1/jobs/{job_id}/resume")

    def events(self, job_id: str, *, after: int = 0, limit: int = 100) -> Document:
        return self._call("GET", f"/v1/jobs/{job_id}/events", params={"after": after, "limit": limit})

    def metrics(self, job_id: str, *, after: int = 0, limit: int = 100) -> Document:
        return self._call("GET", f"/v1/jobs/{job_id}/metrics", params={"after": after, "limit": limit})

    def steering(self, job_id: str) -> Document:
        return self._call("GET", f"/v1/jobs/{job_id}/steering")

    def steer(self, job_id: str, *, if_match: int | None = None, **change: Any) -> Document:
        """change: mode, blend, weights, bounds; what is left out stays as it is."""
        headers = {} if if_match is None else {"if-match": f'"{if_match}"'}
        return self._call("PUT", f"/v1/jobs/{job_id}/steering", json=change, headers=headers)

    def preview(self, job_id: str, **change: Any) -> Document:
        """What `steer` with the same change would have made of the latest kept rollouts; nothing is applied."""
        return self._call("POST", f"/v1/jobs/{job_id}/steering/preview", json=change)

    def rollouts(
        self, job_id: str, *, step: int | None = None, sort: str | None = None, after: int = 0, limit: int = 100
    ) -> Document:
        params = _given(step=step, sort=sort, after=after, limit=limit)
        return self._call("GET", f"/v1/jobs/{job_id}/rollouts", params=params)

    def fork(self, job_id: str, *, idempotency_key: str | None = None, **fork: Any) -> Document:
        """fork: checkpoint, and weights or sweep, changes, name."""
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        return self._call("POST", f"/v1/jobs/{job_id}/fork", json=fork, headers=headers, timeout=600)

    def compare(self, job_ids: list[str]) -> Document:
        return self._call("GET", "/v1/jobs/compare", params={"ids": ",".join(job_ids)})

    def front(self, job_id: str) -> Document:
        return self._call("GET", f"/v1/jobs/{job_id}/front")

    def checkpoints(self, job_id: str) -> Document:
        return self._call("GET", f"/v1/jobs/{job_id}/checkpoints")

    def export(self, job_id: str, step: int, directory: str) -> Document:
        return self._call("POST", f"/v1/jobs/{job_id}/checkpoints/{step}/export", json={"to": directory}, timeout=600)

    def rewards(self) -> Document:
        return self._call("GET", "/v1/rewards")

    def upload_dataset(
        self, content: BinaryIO, *, name: str, format: str, prompt: str = "prompt", answer: str = "answer"
    ) -> Document:
        """`content` is read as it is sent."""
        params = {"name": name, "format": format, "prompt": prompt, "answer": answer}
        return self._call("POST", "/v1/datasets", params=params, content=content, timeout=600)

    def all_datasets(self) -> list[Document]:
        """Every page of the list, newest first."""
        datasets: list[Document] = []
        while True:
            after = datasets[-1]["id"] if datasets else None
            page = self._call("GET", "/v1/datasets", params=_given(after=after, limit=100))
            datasets += page["data"]
            if not page["has_more"]:
                return datasets

    def dataset(self, dataset_id: str) -> Document:
        return self._call("GET", f"/v1/datasets/{dataset_id}")

    def dataset_rows(self, dataset_id: str, *, after: int = 0, limit: int = 20) -> Document:
        return self._call("GET", f"/v1/datasets/{dataset_id}/rows", params={"after": after, "limit": limit})

    def delete_dataset(self, dataset_id: str) -> Document:
        return self._call("DELETE", f"/v1/datasets/{dataset_id}")

    def models(self) -> Document:
        return self._call("GET", "/v1/models")

    def run_rewards(
        self, rewards: list[Document], samples: list[Document], *, max_tokens: int | None = None
    ) -> Document:
        """What each reward gives for pairs of prompt and completion."""
        wanted = _given(rewards=rewards, samples=samples, max_tokens=max_tokens)
        return self._call("POST", "/v1/rewards/run", json=wanted, timeout=60)

    def create_key(
        self, *, name: str, scopes: list[str], owner: str | None = None, expires_in_s: int | None = None
    ) -> Document:
        """`key` in the answer is shown this once."""
        wanted = _given(name=name, scopes=scopes, owner=owner, expires_in_s=expires_in_s)
        return self._call("POST", "/v1/keys", json=wanted)

    def all_keys(self, *, owner: str | None = None) -> list[Document]:
        """Every page of the list, newest first."""
        keys: list[Document] = []
        while True:
            after = keys[-1]["id"] if keys else None
            page = self._call("GET", "/v1/keys", params=_given(owner=owner, after=after, limit=100))
            keys += page["data"]
            if not page["has_more"]:
                return keys

    def revoke_key(self, key_id: str) -> Document:
        return self._call("DELETE", f"/v1/keys/{key_id}")

    def ready(self) -> bool:
        """Whether a server answers there, knows the key, and has its Redis."""
        try:
            self._call("GET", "/readyz")
        except ApiError:
            return False
        return True

    def _call(self, method: str, path: str, **options: Any) -> Document:
        try:
            response = self._http.request(method, path, **options)
        except httpx.ConnectError:
            message = f"no Equipoise server at {self.url}: start one with `equipoise up`"
            raise ApiError(0, "unreachable", message) from None
        except httpx.TransportError as error:
            message = f"the server at {self.url} broke off: {str(error) or type(error).__name__}"
            raise ApiError(0, "unreachable", message) from None
        try:
            document = response.json()
        except ValueError:
            document = None
        if response.is_success and isinstance(document, dict):
            return document
        raise _error(response, document)


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _error(response: httpx.Response, document: Any) -> ApiError:
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        message = f"{response.url} answered {response.status_code} in a form that isn't Equipoise's"
        return ApiError(response.status_code, "unexpected_answer", message)
    return ApiError(response.status_code, error["code"], error["message"], error.get("param"))
