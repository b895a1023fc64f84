"""Fixed time and memory of every step before the actual work: constants without torch or a probe."""

# Resident memory of the interpreter and libraries before a stage loads data: measured with torch 2.13 on Linux.
PROCESS_BYTES = 512 << 20
# Seconds to open, write and hash small files.
STAGE_SECONDS = 0.5
