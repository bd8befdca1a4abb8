/* Every other function that nvidia-ml-py may look up: found, and not supported.
 * `unsupported.def` is written by `python -m kvwatt_sim.nvml.symbols`. */
#include "api.h"

#define UNSUPPORTED(NAME)              \
    NVML_API nvmlReturn_t NAME(void);  \
    NVML_API nvmlReturn_t NAME(void)   \
    {                                  \
        return NVML_ERROR_NOT_SUPPORTED; \
    }

/* All of these take the device first; the arguments behind it are left unread. */
#define UNSUPPORTED_SETTER(NAME)                              \
    NVML_API nvmlReturn_t NAME(nvmlDevice_t device);          \
    NVML_API nvmlReturn_t NAME(nvmlDevice_t device)           \
    {                                                         \
        return kvws_api_unsupported_setter(device, #NAME);    \
    }

#include "unsupported.def"
