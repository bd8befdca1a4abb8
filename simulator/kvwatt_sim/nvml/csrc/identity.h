#ifndef KVWS_IDENTITY_H
#define KVWS_IDENTITY_H

#include "api.h"

#define KVWS_FIRST_PCI_BUS 0x10u

nvmlReturn_t kvws_copy_text(char *to, unsigned int length, const char *from);

#endif
