/* What a step takes and draws: the arithmetic of kvwatt_sim.gpu, operation by operation. */
#include <math.h>

#include "plant.h"

#define SHARPNESS 12.0

static double smooth_max(double a, double b)
{
    double high = a >= b ? a : b;
    double low = a >= b ? b : a;
    if (high <= 0.0)
        return 0.0;
    return high * pow(1.0 + pow(low / high, SHARPNESS), 1.0 / SHARPNESS);
}

kvr_step kvr_step_law(const kvr_plant *plant, double clock_mhz)
{
    const double *law = plant->step_law;
    double prefill = (double)plant->prefill_tokens;
    double x = clock_mhz / law[F_REF_MHZ];
    double tokens = (double)plant->decode_batch * law[DECODE_RATIO] + prefill;
    double read_s = smooth_max(law[WEIGHTS_S], law[WEIGHTS_CLOCK_S] / x);
    double weights_s = read_s + law[TOKENS_S] * tokens / (tokens + law[TOKENS_HALF]);
    double gemm_s = law[COMPUTE_S_PER_TOKEN] * tokens / x;
    double kv_s = (double)plant->kv_tokens * smooth_max(law[KV_S_PER_TOKEN], law[KV_CLOCK_S_PER_TOKEN] / x);
    double pairs = prefill * (plant->context_tokens + prefill / 2);
    double attention_s = law[ATTENTION_S_PER_PAIR] * pairs / x;
    double time_s = law[OVERHEAD_S] + smooth_max(weights_s, gemm_s) + kv_s + attention_s;
    kvr_step step = { time_s, fmin((gemm_s + attention_s) / time_s, 1.0), fmin((read_s + kv_s) / time_s, 1.0) };
    return step;
}

double kvr_power_w(const kvr_plant *plant, double clock_mhz, double compute, double memory)
{
    const double *law = plant->power_law;
    double r = clock_mhz / law[P_F_REF_MHZ];
    double v = fmax(law[V_MIN], 1.0 + law[V_SLOPE] * (r - 1.0));
    double dynamic_w = law[COMPUTE_W] * compute + law[MEMORY_CLOCK_W] * memory;
    return law[IDLE_W] + law[IDLE_SLOPE_W] * r + r * v * v * dynamic_w + law[MEMORY_W] * memory;
}

/* The highest supported clock at most `clock_mhz` under the power cap, or the lowest one. */
int64_t kvr_capped_mhz(const kvr_plant *plant, int64_t clock_mhz, double compute, double memory)
{
    int64_t i = 0, above = plant->n_clocks;
    while (above - i > 1) {
        int64_t middle = (i + above) / 2;
        if (plant->clocks[middle] <= clock_mhz)
            i = middle;
        else
            above = middle;
    }
    while (i > 0 && kvr_power_w(plant, (double)plant->clocks[i], compute, memory) > plant->cap_w)
        i--;
    return plant->clocks[i];
}
