from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("hub_delivery", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="LiveSession",
            fields=[],
            options={
                "verbose_name": "live session",
                "permissions": (("end_session", "Can end live sessions"),),
                "proxy": True,
                "default_permissions": ("view",),
                "indexes": [],
                "constraints": [],
            },
            bases=("hub_delivery.revocation",),
        ),
    ]
