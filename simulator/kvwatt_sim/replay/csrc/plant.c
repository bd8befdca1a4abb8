/* The loop through virtual time: arrivals, steps, clock changes, energy and what the page counts. */
#include <math.h>

#include "plant.h"

#define EXPORT __attribute__((visibility("default")))

void kvr_observe(kvr_meter *meter, double value, double times)
{
    int64_t i = 0;
    while (meter->bounds[i] < value)
        i++;
    meter->counts[i] += times;
    meter->sum += value * times;
}

void kvr_first_token(kvr_plant *plant, int64_t r)
{
    plant->first_order[plant->started++] = r;
    kvr_observe(&plant->ttft, plant->now_s - plant->arrival_s[r], 1.0);
}

void kvr_finished(kvr_plant *plant, int64_t r)
{
    kvr_observe(&plant->e2e, plant->now_s - plant->arrival_s[r], 1.0);
    kvr_observe(&plant->prompts, (double)plant->prompt[r], 1.0);
    kvr_observe(&plant->outputs, (double)plant->generated[r], 1.0);
    if (plant->generated[r] > 1)
        kvr_observe(&plant->tbt, (plant->last_s[r] - plant->first_s[r]) / (double)(plant->generated[r] - 1), 1.0);
}

static void count_gap(kvr_plant *plant, double gap_s)
{
    double place = log(fmax(gap_s, plant->gap_lowest_s) / plant->gap_lowest_s) * plant->gap_scale;
    int64_t bin = place < 0.0 ? 0 : (int64_t)place;
    plant->gaps[bin < plant->gap_bins ? bin : plant->gap_bins - 1] += plant->decode_batch;
}

static void spend(kvr_plant *plant, double dt_s, int64_t clock_mhz, double compute, double memory)
{
    plant->power_w = kvr_power_w(plant, (double)clock_mhz, compute, memory) * (double)plant->tp;
    plant->actual_mhz = clock_mhz;
    plant->energy_j += plant->power_w * dt_s;
    plant->now_s += dt_s;
}

static double until_switch(const kvr_plant *plant, double until_s)
{
    return isinf(plant->switch_at_s) ? until_s : fmin(until_s, fmax(plant->switch_at_s, plant->now_s + 1e-9));
}

static void idle(kvr_plant *plant, double until_s)
{
    double following_s = plant->following < plant->n_requests ? plant->arrival_s[plant->following] : until_s;
    double wake_s = until_switch(plant, fmin(until_s, following_s));
    spend(plant, fmax(wake_s - plant->now_s, 1e-9), plant->clock_mhz, 0.0, 0.0);
}

static void complete(kvr_plant *plant)
{
    plant->planned = 0;
    if (plant->decode_batch) {
        double gap_s = plant->now_s - plant->start_s;
        kvr_observe(&plant->itl, gap_s, (double)plant->decode_batch);
        count_gap(plant, gap_s);
    }
    kvr_observe(&plant->iterations, (double)(plant->decode_batch + plant->prefill_tokens), 1.0);
    kvr_complete(plant);
}

/* Goes on with the step in progress until it ends, `until_s`, or the next clock change. */
static void run(kvr_plant *plant, double until_s)
{
    int64_t asked_mhz = plant->prefill_tokens && plant->prefill_mhz ? plant->prefill_mhz : plant->clock_mhz;
    kvr_step at = kvr_step_law(plant, (double)asked_mhz);
    int64_t clock_mhz = kvr_capped_mhz(plant, asked_mhz, at.compute, at.memory);
    if (clock_mhz != asked_mhz)
        at = kvr_step_law(plant, (double)clock_mhz);
    double dt_s = fmin(plant->left * at.time_s, until_switch(plant, until_s) - plant->now_s);
    spend(plant, dt_s, clock_mhz, at.compute, at.memory);
    plant->left -= dt_s / at.time_s;
    if (plant->left <= 1e-9)
        complete(plant);
}

/* Runs until `until_s`. A clock change takes effect in the middle of a step, as on a real GPU. */
EXPORT void kvr_advance(kvr_plant *plant, double until_s)
{
    while (plant->now_s < until_s - 1e-12) {
        if (plant->now_s >= plant->switch_at_s) {
            plant->clock_mhz = plant->pending_mhz;
            plant->switch_at_s = INFINITY;
        }
        if (!plant->planned) {
            while (plant->following < plant->n_requests && plant->arrival_s[plant->following] <= plant->now_s)
                kvr_add(plant, plant->following++);
            plant->planned = kvr_schedule(plant);
            plant->left = 1.0;
        }
        if (plant->planned)
            run(plant, until_s);
        else
            idle(plant, until_s);
    }
}

/* For the caller's check that both sides lay out the same struct. */
EXPORT int64_t kvr_plant_bytes(void)
{
    return (int64_t)sizeof(kvr_plant);
}

/* Everyone inside: the batch in its order, then the queue. Returns how many. */
EXPORT int64_t kvr_everyone(const kvr_plant *plant, int64_t *out)
{
    int64_t n = 0;
    for (int64_t r = plant->batch.head; r != KVR_NONE; r = plant->next[r])
        out[n++] = r;
    for (int64_t r = plant->queue.head; r != KVR_NONE; r = plant->next[r])
        out[n++] = r;
    return n;
}
