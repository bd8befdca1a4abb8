"""The log that the switched tap inside vLLM writes and bench/tap.py reads: one entry per block of steps."""

BLOCKS_ENV = "KVWATT_BENCH_BLOCKS"
BLOCK_STEPS = 16
BATCH = 16  # requests in every step that counts
BLOCK = "<dddd"  # 1 with the tap, seconds, CPU seconds of the process, seconds inside the tap
