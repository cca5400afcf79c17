from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("hub_progress", "0001_initial")]

    operations = [
        migrations.AddField(model_name="taskrun", name="kwargs", field=models.JSONField(editable=False, null=True)),
    ]
