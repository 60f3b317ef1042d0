"""The views of the test project."""

from __future__ import annotations

import time
from collections.abc import Iterator
from hashlib import sha256

from asgiref.local import Local
from django.conf import settings
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt

KEPT = Local()


@csrf_exempt
def upload(request: HttpRequest) -> JsonResponse:
    """A multipart upload goes to disk piece by piece; answers what arrived."""
    given = request.FILES["file"]
    digest, size = sha256(), 0
    with open(settings.DATA / "stored", "wb") as stored:
        for piece in given.chunks():
            digest.update(piece)
            size += stored.write(piece)
    on_disk = getattr(given, "temporary_file_path", None) is not None
    return JsonResponse(
        {"size": size, "sha256": digest.hexdigest(), "on_disk": on_disk, **request.POST.dict()}
    )


def stream(request: HttpRequest, pieces: int) -> StreamingHttpResponse:
    def lines() -> Iterator[str]:
        for number in range(pieces):
            yield f"line {number}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


def file(request: HttpRequest, name: str) -> FileResponse:
    return FileResponse(open(settings.DATA / name, "rb"))


def whoami(request: HttpRequest) -> JsonResponse:
    return JsonResponse(
        {
            "user": str(request.user),
            "address": request.META["REMOTE_ADDR"],
            "url": request.build_absolute_uri(),
        }
    )


def local(request: HttpRequest, value: str) -> HttpResponse:
    """What an asgiref Local held before, and after others had their turn."""
    before = getattr(KEPT, "value", None)
    KEPT.value = value
    time.sleep(0.005)
    return HttpResponse(f"{before} {KEPT.value}")
