"""The record of who did what: searches, enrolments, erasures, keys, jobs, exports."""
