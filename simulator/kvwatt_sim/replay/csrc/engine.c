/* The scheduler: the laws of kvwatt_sim.engine.core and .live, function by function. */
#include "plant.h"

static int64_t blocks_for(const kvr_plant *plant, int64_t tokens)
{
    return (tokens + plant->block_size - 1) / plant->block_size;
}

/* Tokens to have in the cache before the next one can be generated, outside DECODE. */
static int64_t target_of(const kvr_plant *plant, int64_t r)
{
    return plant->prompt[r] + plant->generated[r];
}

static int64_t floor_mod(int64_t value, int64_t by)
{
    int64_t rest = value % by;
    return rest < 0 ? rest + by : rest;
}

/* --- doubly linked lists over arrays ------------------------------------------------------- */

static void push_back(kvr_list *list, int64_t *next, int64_t *prev, int64_t r)
{
    next[r] = KVR_NONE;
    prev[r] = list->tail;
    if (list->tail == KVR_NONE)
        list->head = r;
    else
        next[list->tail] = r;
    list->tail = r;
}

static void push_front(kvr_list *list, int64_t *next, int64_t *prev, int64_t r)
{
    prev[r] = KVR_NONE;
    next[r] = list->head;
    if (list->head == KVR_NONE)
        list->tail = r;
    else
        prev[list->head] = r;
    list->head = r;
}

static void unlink_item(kvr_list *list, int64_t *next, int64_t *prev, int64_t r)
{
    if (prev[r] == KVR_NONE)
        list->head = next[r];
    else
        next[prev[r]] = next[r];
    if (next[r] == KVR_NONE)
        list->tail = prev[r];
    else
        prev[next[r]] = prev[r];
}

/* --- the decodes: offsets from a common step counter ---------------------------------------- */

static void with_bucket(kvr_plant *plant, int64_t r,
                        void (*change)(kvr_list *, int64_t *, int64_t *, int64_t))
{
    int64_t slot = plant->finish_at[r] & plant->ring_mask;
    kvr_list list = { plant->ring_head[slot], plant->ring_tail[slot] };
    change(&list, plant->f_next, plant->f_prev, r);
    plant->ring_head[slot] = list.head;
    plant->ring_tail[slot] = list.tail;
}

static void join_decodes(kvr_plant *plant, int64_t r)
{
    plant->phase[r] = KVR_DECODE;
    plant->kv_offset[r] = plant->computed[r] - plant->decode_steps;
    plant->output_offset[r] = plant->generated[r] - plant->decode_steps;
    plant->finish_at[r] = plant->total[r] - plant->output_offset[r];
    plant->members++;
    plant->by_remainder[floor_mod(plant->kv_offset[r], plant->block_size)]++;
    plant->offset_sum += plant->kv_offset[r];
    with_bucket(plant, r, push_back);
}

static void leave_decodes(kvr_plant *plant, int64_t r)
{
    plant->members--;
    plant->by_remainder[floor_mod(plant->kv_offset[r], plant->block_size)]--;
    plant->offset_sum -= plant->kv_offset[r];
    with_bucket(plant, r, unlink_item);
    plant->computed[r] = plant->kv_offset[r] + plant->decode_steps;
    plant->generated[r] = plant->output_offset[r] + plant->decode_steps - (plant->in_flight ? 1 : 0);
    plant->blocks[r] = blocks_for(plant, plant->computed[r]);
}

static int needs_block(const kvr_plant *plant, int64_t r)
{
    return floor_mod(plant->kv_offset[r] + plant->decode_steps, plant->block_size) == 0;
}

/* --- room ----------------------------------------------------------------------------------- */

static void take_out(kvr_plant *plant, int64_t r)
{
    unlink_item(&plant->batch, plant->next, plant->prev, r);
    plant->running--;
    if (plant->phase[r] == KVR_PREFILL)
        unlink_item(&plant->prefilling, plant->p_next, plant->p_prev, r);
    if (plant->phase[r] == KVR_DECODE)
        leave_decodes(plant, r);
    plant->free_blocks += plant->blocks[r];
    plant->blocks[r] = 0;
}

static int make_room(kvr_plant *plant, int64_t r, int64_t blocks, int *preempted)
{
    while (plant->free_blocks < blocks) {
        if (plant->phase[r] == KVR_WAITING)
            return 0;
        int64_t victim = plant->batch.tail;
        take_out(plant, victim);
        plant->phase[victim] = KVR_WAITING;
        plant->computed[victim] = 0;
        plant->preempted[victim]++;
        push_front(&plant->queue, plant->next, plant->prev, victim);
        plant->waiting++;
        plant->preemptions++;
        *preempted = 1;
    }
    return plant->phase[r] != KVR_WAITING;
}

/* --- a step --------------------------------------------------------------------------------- */

static void book_one_by_one(kvr_plant *plant, int *preempted)
{
    int64_t r = plant->batch.head;
    while (r != KVR_NONE) {
        int decodes = plant->phase[r] == KVR_DECODE && needs_block(plant, r);
        if (decodes && make_room(plant, r, 1, preempted))
            plant->free_blocks--;
        if (plant->phase[r] == KVR_WAITING) /* it was the last of the batch */
            return;
        r = plant->next[r];
    }
}

static void book_decodes(kvr_plant *plant, int *preempted)
{
    int64_t needed = plant->by_remainder[floor_mod(-plant->decode_steps, plant->block_size)];
    if (needed <= plant->free_blocks)
        plant->free_blocks -= needed;
    else
        book_one_by_one(plant, preempted);
    if (plant->members) {
        plant->decode_steps++;
        plant->in_flight = 1;
    }
}

/* What a step's chunks add up to; pairs of query and key as in a chunk behind a context. */
typedef struct {
    int64_t tokens;
    double pairs;
} chunk_sum;

static void compute(kvr_plant *plant, int64_t r, int64_t tokens, int64_t new_blocks, chunk_sum *sum)
{
    plant->computed[r] += tokens;
    plant->blocks[r] += new_blocks;
    plant->free_blocks -= new_blocks;
    plant->chunks[plant->n_chunks++] = r;
    sum->tokens += tokens;
    sum->pairs += (double)tokens * ((double)plant->computed[r] - (double)tokens / 2);
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void continue_prefills(kvr_plant *plant, int64_t budget, int *preempted, chunk_sum *sum)
{
    int64_t r = plant->prefilling.head;
    while (r != KVR_NONE) {
        int64_t tokens = smaller(target_of(plant, r) - plant->computed[r], budget);
        if (tokens <= 0)
            return;
        int64_t needed = blocks_for(plant, plant->computed[r] + tokens) - plant->blocks[r];
        if (!make_room(plant, r, needed, preempted))
            return;
        compute(plant, r, tokens, needed, sum);
        budget -= tokens;
        r = plant->p_next[r];
    }
}

static int64_t seats_for(const kvr_plant *plant)
{
    return plant->seats && plant->waiting ? smaller(plant->seats(), plant->max_seqs) : plant->max_seqs;
}

/* An empty batch takes whoever is first, whatever the cap: else it would never be served. */
static int within_cap(const kvr_plant *plant, int64_t blocks)
{
    return !plant->running || plant->budget_blocks - plant->free_blocks + blocks <= plant->admit_blocks;
}

static void admit(kvr_plant *plant, int64_t seats, int64_t budget, chunk_sum *sum)
{
    while (plant->waiting && budget > 0 && plant->running < seats) {
        int64_t r = plant->queue.head;
        int64_t blocks = blocks_for(plant, target_of(plant, r));
        if (plant->held[r] || blocks > plant->free_blocks || !within_cap(plant, blocks))
            return;
        unlink_item(&plant->queue, plant->next, plant->prev, r);
        plant->waiting--;
        plant->phase[r] = KVR_PREFILL;
        push_back(&plant->batch, plant->next, plant->prev, r);
        plant->running++;
        push_back(&plant->prefilling, plant->p_next, plant->p_prev, r);
        if (plant->scheduled_s[r] < 0.0)
            plant->scheduled_s[r] = plant->now_s;
        int64_t tokens = smaller(target_of(plant, r) - plant->computed[r], budget);
        int64_t needed = blocks_for(plant, plant->computed[r] + tokens) - plant->blocks[r];
        compute(plant, r, tokens, needed, sum);
        budget -= tokens;
    }
}

void kvr_add(kvr_plant *plant, int64_t r)
{
    plant->phase[r] = KVR_WAITING;
    plant->held[r] = plant->hold_new;
    push_back(&plant->queue, plant->next, plant->prev, r);
    plant->waiting++;
}

/* Plans the step that starts now; 0 when there is nothing to run. */
int kvr_schedule(kvr_plant *plant)
{
    if (plant->running + plant->waiting == 0)
        return 0;
    int64_t seats = seats_for(plant);
    int preempted = 0;
    chunk_sum sum = { 0, 0.0 };
    plant->n_chunks = 0;
    book_decodes(plant, &preempted);
    int64_t budget = plant->max_batched - plant->members;
    continue_prefills(plant, budget, &preempted, &sum);
    if (!preempted)
        admit(plant, seats, budget - sum.tokens, &sum);
    if (!plant->members && !plant->n_chunks && !preempted) /* all that wait are held */
        return 0;
    plant->decode_batch = plant->members;
    plant->kv_tokens = plant->offset_sum + plant->members * plant->decode_steps;
    plant->prefill_tokens = sum.tokens;
    plant->context_tokens = sum.tokens ? sum.pairs / (double)sum.tokens - (double)sum.tokens / 2 : 0.0;
    plant->start_s = plant->now_s;
    plant->steps++;
    plant->computed_tokens += plant->decode_batch + plant->prefill_tokens;
    return 1;
}

static void finish(kvr_plant *plant, int64_t r)
{
    take_out(plant, r);
    plant->phase[r] = KVR_GONE;
    plant->last_s[r] = plant->now_s;
    plant->finish_order[plant->finished++] = r;
    kvr_finished(plant, r);
}

static void end_decodes(kvr_plant *plant)
{
    int64_t slot = plant->decode_steps & plant->ring_mask;
    plant->generation_tokens += plant->members;
    while (plant->ring_head[slot] != KVR_NONE)
        finish(plant, plant->ring_head[slot]);
}

static void end_prefill(kvr_plant *plant, int64_t r)
{
    plant->generated[r]++;
    plant->generation_tokens++;
    if (plant->first_s[r] < 0.0) {
        plant->first_s[r] = plant->now_s;
        plant->prompt_tokens += plant->prompt[r];
        kvr_first_token(plant, r);
    }
    if (plant->generated[r] < plant->total[r]) {
        unlink_item(&plant->prefilling, plant->p_next, plant->p_prev, r);
        join_decodes(plant, r);
    } else {
        finish(plant, r);
    }
}

/* Ends the step now: tokens, and what finished with them. */
void kvr_complete(kvr_plant *plant)
{
    if (plant->in_flight) {
        plant->in_flight = 0;
        end_decodes(plant);
    }
    for (int64_t i = 0; i < plant->n_chunks; i++) {
        int64_t r = plant->chunks[i];
        if (plant->phase[r] == KVR_PREFILL && plant->computed[r] == target_of(plant, r))
            end_prefill(plant, r);
    }
    plant->n_chunks = 0;
}
