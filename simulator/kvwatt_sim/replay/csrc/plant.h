/* One simulated engine on one simulated GPU group in virtual time.
 *
 * The scheduler's laws are those of kvwatt_sim.engine, the step and power laws those of kvwatt_sim.gpu;
 * tests/replay shows that whole runs are equal. Python owns all memory: every array belongs to a numpy
 * array in kvwatt_sim.replay.kernel, which lays out the same struct. Every field has 8 bytes. */
#ifndef KVWATT_PLANT_H
#define KVWATT_PLANT_H

#include <stdint.h>

#define KVR_NONE (-1)

enum { KVR_WAITING, KVR_PREFILL, KVR_DECODE, KVR_GONE, KVR_COMING };

/* Order of kvwatt_sim.gpu.StepLaw. */
enum {
    F_REF_MHZ,
    OVERHEAD_S,
    WEIGHTS_S,
    WEIGHTS_CLOCK_S,
    TOKENS_S,
    TOKENS_HALF,
    COMPUTE_S_PER_TOKEN,
    DECODE_RATIO,
    KV_S_PER_TOKEN,
    KV_CLOCK_S_PER_TOKEN,
    ATTENTION_S_PER_PAIR,
    STEP_LAW
};

/* Order of PowerLaw.as_array() in kvwatt_sim.nvml.spec. */
enum { P_F_REF_MHZ, IDLE_W, IDLE_SLOPE_W, COMPUTE_W, MEMORY_CLOCK_W, MEMORY_W, V_MIN, V_SLOPE, POWER_LAW };

typedef struct {
    double *bounds; /* ascending, the last is infinite */
    double *counts;
    double sum;
} kvr_meter;

typedef struct {
    int64_t head, tail;
} kvr_list;

typedef struct {
    /* fixed */
    int64_t n_requests, block_size, budget_blocks, max_seqs, max_batched, n_clocks, ring_mask, tp;
    double step_law[STEP_LAW], power_law[POWER_LAW], cap_w;
    double gap_lowest_s, gap_scale;
    int64_t gap_bins;
    int64_t *clocks;
    /* per request, in order of arrival */
    double *arrival_s;
    int64_t *prompt, *total;
    int64_t *phase, *generated, *computed, *blocks, *preempted, *kv_offset, *output_offset, *finish_at;
    int64_t *next, *prev;   /* in the batch, or in the queue */
    int64_t *p_next, *p_prev; /* among those with prompt left */
    int64_t *f_next, *f_prev; /* among those that finish at the same decode step */
    int64_t *held; /* waits until it is released; whoever is behind it waits, too */
    double *scheduled_s, *first_s, *last_s;
    int64_t *first_order, *finish_order;
    /* scratch */
    int64_t *by_remainder, *ring_head, *ring_tail, *chunks;
    int64_t *gaps;
    /* admission: hold_new, who arrives is held; admit_blocks, what a batch may hold once a request joins it */
    int64_t hold_new, admit_blocks;
    /* engine */
    int64_t following, running, waiting, members, decode_steps, offset_sum, free_blocks, in_flight, n_chunks;
    kvr_list batch, queue, prefilling;
    int64_t steps, computed_tokens, generation_tokens, prompt_tokens, preemptions, started, finished;
    /* the step in progress */
    int64_t planned, decode_batch, kv_tokens, prefill_tokens;
    double context_tokens, start_s, left;
    /* GPU */
    double now_s, energy_j, power_w, switch_at_s;
    int64_t clock_mhz, pending_mhz, actual_mhz, prefill_mhz; /* prefill_mhz 0: clock_mhz for all steps */
    kvr_meter ttft, tbt, itl, e2e, prompts, outputs, iterations;
    /* How many may run in the coming step; asked before each while somebody waits. NULL: max_seqs. */
    int64_t (*seats)(void);
} kvr_plant;

typedef struct {
    double time_s, compute, memory;
} kvr_step;

/* engine.c */
void kvr_add(kvr_plant *plant, int64_t request);
int kvr_schedule(kvr_plant *plant);
void kvr_complete(kvr_plant *plant);

/* laws.c */
kvr_step kvr_step_law(const kvr_plant *plant, double clock_mhz);
double kvr_power_w(const kvr_plant *plant, double clock_mhz, double compute, double memory);
int64_t kvr_capped_mhz(const kvr_plant *plant, int64_t clock_mhz, double compute, double memory);

/* plant.c */
void kvr_observe(kvr_meter *meter, double value, double times);
void kvr_first_token(kvr_plant *plant, int64_t request);
void kvr_finished(kvr_plant *plant, int64_t request);

#endif
