"""A typed client of the REST interface, for the command line, the demo and other programs.

```
with Client("http://127.0.0.1:8000") as client:
    client.enroll("anna", [Path("walk.zip")])
    answer = client.identify(Path("other.zip"))
    for event in client.follow(client.calibrate().id): ...
```
Asynchronous programs call it in a thread: `await asyncio.to_thread(client.identify, walk)`. It
imports nothing else of the service.
"""

from service.client.answers import (
    Candidate,
    Coverage,
    EnrolledSequence,
    Enrolment,
    EnrolmentConflict,
    ErasureReceipt,
    Gallery,
    Health,
    Identification,
    Import,
    Job,
    JobEvent,
    JobProgress,
    Model,
    ModelReference,
    ModelSummary,
    Probe,
    Quality,
    Readiness,
    Resemblance,
    Sequence,
    Subject,
    SubjectDetails,
    Verification,
)
from service.client.client import Client
from service.client.connection import Retries, Upload
from service.client.failures import (
    BadRequest,
    ClientError,
    Conflict,
    Fault,
    Forbidden,
    Invalid,
    NotFound,
    Problem,
    RateLimited,
    Refused,
    ServiceUnreachable,
    StorageFull,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
    UnsupportedMedia,
    UnusableName,
)

__all__ = [
    "BadRequest",
    "Candidate",
    "Client",
    "ClientError",
    "Conflict",
    "Coverage",
    "EnrolledSequence",
    "Enrolment",
    "EnrolmentConflict",
    "ErasureReceipt",
    "Fault",
    "Forbidden",
    "Gallery",
    "Health",
    "Identification",
    "Import",
    "Invalid",
    "Job",
    "JobEvent",
    "JobProgress",
    "Model",
    "ModelReference",
    "ModelSummary",
    "NotFound",
    "Probe",
    "Problem",
    "Quality",
    "RateLimited",
    "Readiness",
    "Refused",
    "Resemblance",
    "Retries",
    "Sequence",
    "ServiceUnreachable",
    "StorageFull",
    "Subject",
    "SubjectDetails",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedAnswer",
    "UnsupportedMedia",
    "UnusableName",
    "Upload",
    "Verification",
]
