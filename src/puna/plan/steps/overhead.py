"""What every step costs before it does anything: constants that need neither torch nor a probe."""

# Interpreter and libraries, resident before a stage loads anything: measured with torch 2.13 on Linux.
PROCESS_BYTES = 512 << 20
# Opening, writing and hashing of small files.
STAGE_SECONDS = 0.5
