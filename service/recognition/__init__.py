"""From an upload to an enrolment, an identification or a verification."""
